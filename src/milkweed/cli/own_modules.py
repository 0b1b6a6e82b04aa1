"""Modules of the user's, imported because the command line names them."""

import importlib
import importlib.util
import os
import sys
from contextlib import suppress
from types import ModuleType

from milkweed._suggest import UsageError


def import_named(name: str, option: str) -> ModuleType:
    """Import a module by its name; it is looked for in the working folder too. `option` is what errors start with."""
    name, spec = name.removesuffix(".py"), None
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if all(map(str.isidentifier, name.split("."))):
        with suppress(ModuleNotFoundError):  # of a package around it
            spec = importlib.util.find_spec(name)
    if spec is None:
        raise UsageError(
            f"{option}: there is no such module; give the name by which Python imports it, e.g. my_layers for "
            "my_layers.py in this folder"
        )
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{option}: {spec.origin or name} cannot be imported: {error}") from error
