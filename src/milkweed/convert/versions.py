"""Names that files of earlier versions have for what is called otherwise today."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import nn

from milkweed.nn import S4, S4D, S4ND, SequenceLayer

T = TypeVar("T")


def renamed(found: Mapping[str, T], model: nn.Module, version: str) -> dict[str, T]:
    """Give parameters or layers of an earlier version, by dotted name, the names that they have today."""
    rename = _RENAMES.get(version)
    if rename is None:
        return dict(found)
    names: dict[str, str] = {}
    for name in found:
        today = rename(name, model)
        if names.setdefault(today, name) != name:
            raise ValueError(f"{names[today]!r} and {name!r} of version {version} are both {today!r} today; keep one")
    return {today: found[name] for today, name in names.items()}


def former(names: Iterable[str], model: nn.Module, version: str) -> list[str]:
    """Give the names that parameters of a model had in an earlier version, in their order."""
    rename = _FORMER.get(version)
    return list(names) if rename is None else [rename(name, model) for name in names]


def _from_0_1_0(name: str, model: nn.Module) -> str:
    """Filter and mixing were one module in S4 layers, and gate and output stood beside the filter in others."""
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = ".".join(parts[:depth])
        if not _has_module(model, owner) or not isinstance(model.get_submodule(owner), SequenceLayer | S4ND):
            continue
        head = parts[depth]
        if head in {"gate", "output"}:
            parts.insert(depth, "mix")
        elif head not in {"dropout", "filter", "mix"}:
            parts.insert(depth, "filter")
        break
    return ".".join(parts)


def _to_0_1_0(name: str, model: nn.Module) -> str:
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = ".".join(parts[:depth])
        if not _has_module(model, owner) or not isinstance(model.get_submodule(owner), SequenceLayer | S4ND):
            continue
        if parts[depth] == "mix" or isinstance(model.get_submodule(owner), S4 | S4D | S4ND):
            del parts[depth]
        break
    return ".".join(parts)


def _has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


_RENAMES: dict[str, Callable[[str, nn.Module], str]] = {"0.1.0": _from_0_1_0}
_FORMER: dict[str, Callable[[str, nn.Module], str]] = {"0.1.0": _to_0_1_0}
