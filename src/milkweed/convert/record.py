"""Which layers of a model are structured where its architecture has dense ones, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from milkweed.convert.sites import is_conv1d, replace
from milkweed.nn.factory import build_linear, linear_spec
from milkweed.nn.structured_linear import AdaptedLinear, ConcatLinear, StructuredLinear


def conversion_record(model: nn.Module, skeleton: nn.Module | None) -> list[dict[str, Any]]:
    """List the layers that differ from those of a model's architecture: converted ones, and ones made dense again.

    Args:
        model: The model.
        skeleton: Its architecture, or None if unknown: all structured layers are then listed.

    Returns:
        ``[{"names": [...], "in_features": ..., "out_features": [...], "layers": [spec, ...]}]``.

    Raises:
        ValueError: The model has adapters, which are saved by themselves.
    """
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ValueError(
            "the model has adapters: save them alone with save_adapters(model, path), or merge_adapters_(model) first"
        )
    record = [
        layer_entry(names, module)
        for module, names in structured_layers(model).items()
        if skeleton is None or not _same(skeleton, names[0], module)
    ]
    if skeleton is not None:
        for names in structured_layers(skeleton).values():
            module = model.get_submodule(names[0])
            if type(module) is nn.Linear:
                record.append(layer_entry(names, module))
    return record


def structured_layers(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Find the structured linear layers of a model, the parts of packed ones not by themselves, updates not at all.

    Args:
        model: Any module.

    Returns:
        All paths of each layer.
    """
    found: dict[nn.Module, list[str]] = {}
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AdaptedLinear):
            inside.append(f"{name}.update" if name else "update")
        elif isinstance(module, StructuredLinear | ConcatLinear) and not name.startswith(tuple(inside)):
            found.setdefault(module, []).append(name)
            inside.append(f"{name}.")
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
        replace(model, names, build_entry(entry))


def build_entry(entry: dict[str, Any]) -> nn.Module:
    """Make a layer without numbers, on the meta device.

    Args:
        entry: From `layer_entry`.

    Returns:
        The layer, several parts side by side.
    """
    with torch.device("meta"):
        parts = [
            build_linear(spec, int(entry["in_features"]), int(out))
            for spec, out in zip(entry["layers"], entry["out_features"], strict=True)
        ]
    structured = [part for part in parts if isinstance(part, StructuredLinear)]
    return parts[0] if len(parts) == 1 else ConcatLinear(structured)


def layer_entry(names: Sequence[str], module: nn.Module) -> dict[str, Any]:
    """Write one linear layer down as plain values.

    Args:
        names: All paths of it.
        module: A dense, structured or packed layer.

    Returns:
        An entry of `conversion_record`.
    """
    parts = [
        part
        for part in (module.parts if isinstance(module, ConcatLinear) else [module])
        if isinstance(part, StructuredLinear | nn.Linear)
    ]
    return {
        "names": list(names),
        "in_features": parts[0].in_features,
        "out_features": [part.out_features for part in parts],
        "layers": [linear_spec(part) for part in parts],
    }


def _same(skeleton: nn.Module, name: str, module: nn.Module) -> bool:
    try:
        original = skeleton.get_submodule(name)
    except AttributeError:
        return False
    return type(original) is type(module) and layer_entry([name], original) == layer_entry([name], module)
