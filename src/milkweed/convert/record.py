"""Which layers of a model are structured where its architecture has dense ones, as plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from milkweed.convert.sites import is_conv1d, replace
from milkweed.nn.factory import build_linear, linear_spec
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


def conversion_record(model: nn.Module, skeleton: nn.Module | None) -> list[dict[str, Any]]:
    """List the layers that differ from those of a model's architecture: converted ones, and ones made dense again.

    Args:
        model: The model.
        skeleton: Its architecture, or None if unknown: all structured layers are then listed.

    Returns:
        ``[{"names": [...], "in_features": ..., "out_features": [...], "layers": [spec, ...]}]``.
    """
    record = [
        _entry(names, module)
        for module, names in structured_layers(model).items()
        if skeleton is None or not _same(skeleton, names[0], module)
    ]
    if skeleton is not None:
        for names in structured_layers(skeleton).values():
            module = model.get_submodule(names[0])
            if type(module) is nn.Linear:
                record.append(_entry(names, module))
    return record


def structured_layers(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Find the structured linear layers of a model, the parts of packed ones not by themselves.

    Args:
        model: Any module.

    Returns:
        All paths of each layer.
    """
    found: dict[nn.Module, list[str]] = {}
    packed: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, StructuredLinear | ConcatLinear) and not name.startswith(tuple(packed)):
            found.setdefault(module, []).append(name)
            packed.append(f"{name}.")
    return found


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
        replace(model, names, parts[0] if len(parts) == 1 else ConcatLinear(structured))


def _entry(names: list[str], module: nn.Module) -> dict[str, Any]:
    parts = [
        part
        for part in (module.parts if isinstance(module, ConcatLinear) else [module])
        if isinstance(part, StructuredLinear | nn.Linear)
    ]
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
