"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__`` for names by the module that holds them, and for the modules."""
    homes = {name: module for module, held in names.items() for name in held}

    def find(name: str) -> Any:
        if name not in homes and name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        try:
            module = importlib.import_module(f"{package}.{homes.get(name, name)}")
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in {"", "milkweed"} or "milkweed[" in str(error):
                raise
            raise ModuleNotFoundError(
                f'{package}.{name} needs {missing}, which is not installed: pip install "milkweed[train]"',
                name=error.name,
            ) from error
        found = getattr(module, name) if name in homes else module
        setattr(sys.modules[package], name, found)  # asked for once
        return found

    def known() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *names})

    return find, known
