"""Which layers of a model are structured where its architecture has dense ones, as plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from milkweed.convert.sites import is_conv1d, replace
from milkweed.nn.factory import build_linear, linear_spec
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


def conversion_record(model: nn.Module, skeleton: nn.Module | None) -> list[dict[str, Any]]:
    """List the structured layers that a model's architecture does not have by itself.

    Args:
        model: The model.
        skeleton: Its architecture, or None if unknown: all structured layers are then listed.

    Returns:
        ``[{"names": [...], "in_features": ..., "out_features": ..., "layers": [spec, ...]}]``.
    """
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        inside = any(name.startswith(f"{path}.") for paths in found.values() for path in paths)
        if isinstance(module, StructuredLinear | ConcatLinear) and not inside:
            found.setdefault(module, []).append(name)
    return [
        _entry(names, module)
        for module, names in found.items()
        if skeleton is None or not _same(skeleton, names[0], module)
    ]


def rebuild(model: nn.Module, record: list[dict[str, Any]]) -> None:
    """Put structured layers without numbers where a record says.

    Args:
        model: The architecture before conversion, changed in place.
        record: From `conversion_record`.

    Raises:
        ValueError: An entry does not fit the model.
    """
    for entry in record:
        names = tuple(entry["names"])
        old = model.get_submodule(names[0])
        if not isinstance(old, nn.Linear | StructuredLinear | ConcatLinear) and not is_conv1d(old):
            raise ValueError(f"{names[0]} is a {type(old).__name__}, no linear layer")
        with torch.device("meta"):
            parts = [
                build_linear(spec, int(entry["in_features"]), int(out))
                for spec, out in zip(entry["layers"], entry["out_features"], strict=True)
            ]
        structured = [part for part in parts if isinstance(part, StructuredLinear)]
        replace(model, names, structured[0] if len(structured) == 1 else ConcatLinear(structured))


def _parts(module: nn.Module) -> list[StructuredLinear]:
    parts = module.parts if isinstance(module, ConcatLinear) else [module]
    return [part for part in parts if isinstance(part, StructuredLinear)]


def _entry(names: list[str], module: nn.Module) -> dict[str, Any]:
    parts = _parts(module)
    return {
        "names": names,
        "in_features": parts[0].in_features,
        "out_features": [part.out_features for part in parts],
        "layers": [linear_spec(part) for part in parts],
    }


def _same(skeleton: nn.Module, name: str, module: nn.Module) -> bool:
    try:
        original = skeleton.get_submodule(name)
    except AttributeError:
        return False
    return type(original) is type(module) and _entry([name], original) == _entry([name], module)
