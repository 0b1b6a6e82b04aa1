"""Which layers of a model are structured where its architecture has dense ones, as plain values."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.experts import split_recorded_
from milkweed.convert.sites import LinearSite, is_conv1d, name_without_adapter, replace
from milkweed.nn.factory import build_linear, linear_spec
from milkweed.nn.structured_linear import AdaptedLinear, ConcatLinear, StructuredLinear
from milkweed.nn.wrappers import through_wrappers

MARKER = "weight"
"""The buffer of one number under the name of the dense weight: whoever does not know the layer finds a wrong size."""
# What an entry of a record looks like in a file; see `metadata.read_json`.
ENTRY = {"names": (str,), "in_features": int, "out_features": (int,), "layers": (dict,)}

# Where a layer of PEFT keeps its Monarch updates.
PEFT_UPDATE = "monarch_update"


def conversion_record(model: nn.Module, skeleton: nn.Module | None) -> list[dict[str, Any]]:
    """List the layers that differ from the skeleton's, or without one all structured ones; see `ENTRY`."""
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ValueError(
            "the model has adapters: save them alone with save_adapters(model, path), or merge_adapters_(model) first"
        )
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is not None and any(isinstance(module, tuners.BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model has adapters of PEFT: save them alone with the PeftModel's save_pretrained(path), or take "
            "model.merge_and_unload() first"
        )
    return [layer_entry(names, module) for names, module in differing_layers(model, skeleton).items()]


def differing_layers(model: nn.Module, skeleton: nn.Module | None) -> dict[tuple[str, ...], nn.Module]:
    """Find the layers that differ from the skeleton's, by all their paths as without adapters."""
    found: dict[tuple[str, ...], nn.Module] = {}
    for module, paths in structured_layers(model).items():
        names = tuple(name_without_adapter(model, path) for path in paths)
        if skeleton is None or not _same(skeleton, names[0], module):
            found[names] = module
    if skeleton is not None:
        for paths in structured_layers(skeleton).values():
            now = model.get_submodule(paths[0])
            if type(now) is nn.Linear:
                found[tuple(paths)] = now
    return found


@through_wrappers(changes=False)
def structured_layers(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Find structured linear layers and all paths of each; parts of packed ones and updates are not listed."""
    found: dict[nn.Module, list[str]] = {}
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AdaptedLinear):
            inside.append(f"{name}.update" if name else "update")
        elif PEFT_UPDATE in module._modules:
            inside.append(f"{name}.{PEFT_UPDATE}" if name else PEFT_UPDATE)
        elif isinstance(module, StructuredLinear | ConcatLinear) and not name.startswith(tuple(inside)):
            found.setdefault(module, []).append(name)
            inside.append(f"{name}.")
    return found


def recorded_names(record: list[dict[str, Any]]) -> list[str]:
    """All paths of the layers of a record."""
    return [name for entry in record for name in entry["names"]]


Layers = dict[tuple[str, ...], nn.Module]


def recorded_layers(
    model: nn.Module, record: list[dict[str, Any]], stored: Mapping[str, Tensor] | None = None
) -> Layers:
    """Make the layers of a record, without numbers, by all their paths; the model is not changed."""
    # Where layers lie in experts, these are split already, by `experts_apart` or `split_recorded_`.
    found: Layers = {}
    for entry in record:
        for name in entry["names"]:
            check_size(model, name, entry["in_features"], sum(entry["out_features"]))
        layer = build_entry(entry)
        if f"{entry['names'][0]}.{MARKER}" in (stored or {}):
            mark(layer)
        found[tuple(entry["names"])] = layer
    return found


def mark(layer: nn.Module) -> None:
    """Give a layer the buffer under the dense weight's name; one with a parameter of that name has it already."""
    if hasattr(layer, MARKER):
        return
    first = next(layer.parameters())
    layer.register_buffer(MARKER, torch.zeros(1, dtype=first.dtype, device=first.device))


def check_size(model: nn.Module, name: str, in_features: int, out_features: int) -> None:
    """Refuse a recorded layer in whose place a model has no linear layer, or one of another size."""
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear | StructuredLinear | ConcatLinear) and not is_conv1d(old):
        raise ValueError(f"{name!r} is a {type(old).__name__}, not a linear layer")
    site = LinearSite((name,), old, None)
    if (site.in_features, site.out_features) != (in_features, out_features):
        raise ValueError(
            f"layer {name!r} has {in_features} inputs and {out_features} outputs there, {site.in_features} and "
            f"{site.out_features} in the model"
        )


def misfit(model: nn.Module, layers: Layers, state: Mapping[str, Tensor]) -> str | None:
    """In what the tensors of a model with some layers replaced differ from others, or None if they fit."""
    replaced = tuple(f"{name}." for names in layers for name in names)
    expected = {key: value for key, value in model.state_dict(keep_vars=True).items() if not key.startswith(replaced)}
    for names, layer in layers.items():
        for name in names:
            expected |= {f"{name}.{key}": value for key, value in layer.state_dict(keep_vars=True).items()}
    for name in sorted(expected.keys() ^ state.keys()):
        return f"{name!r} is missing" if name in expected else f"the model has no {name!r}"
    for name, value in expected.items():
        found = state[name]
        if not isinstance(value, Tensor) or value.shape != found.shape:
            size = tuple(value.shape) if isinstance(value, Tensor) else "no"
            return f"{name!r} has shape {tuple(found.shape)}, in the model {size}"
        if _kind(value) != _kind(found):
            fix = "; torch computes nothing in 8 bits, cast it to bfloat16 or wider" if _kind(found)[1] else ""
            return f"{name!r} is {found.dtype}, in the model {value.dtype}{fix}"
    return None


def _kind(tensor: Tensor) -> tuple[bool, bool, bool, bool]:
    """What numbers a tensor holds: in each kind one width can stand for another, between kinds none."""
    real = tensor.is_floating_point()
    return real, real and tensor.itemsize == 1, tensor.is_complex(), tensor.dtype == torch.bool


def rebuild(model: nn.Module, layers: Layers) -> None:
    """Put recorded layers in their places."""
    split_recorded_(model, (name for names in layers for name in names))
    for names, layer in layers.items():
        replace(model, names, layer)


def build_entry(entry: dict[str, Any]) -> nn.Module:
    """Make the layer of an entry without numbers, on the meta device, several parts side by side."""
    if len(entry["layers"]) != len(entry["out_features"]):
        raise ValueError(
            f"{entry['names'][0]!r} has {len(entry['layers'])} layers for {len(entry['out_features'])} sizes of outputs"
        )
    with torch.device("meta"):
        parts = [
            build_linear(spec, entry["in_features"], out)
            for spec, out in zip(entry["layers"], entry["out_features"], strict=True)
        ]
    structured = [part for part in parts if isinstance(part, StructuredLinear)]
    return parts[0] if len(parts) == 1 else ConcatLinear(structured)


def layer_entry(names: Sequence[str], module: nn.Module) -> dict[str, Any]:
    """Write a dense, structured or packed layer down as plain values, an entry of `conversion_record`."""
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
