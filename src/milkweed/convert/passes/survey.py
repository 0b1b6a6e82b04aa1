"""What a model holds beside its linear layers: every matrix that a conversion leaves as it is, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from milkweed.convert.layer_report import KeptMatrix
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import AdaptedLinear, ConcatLinear, StructuredLinear


def survey(model: nn.Module, sites: Iterable[LinearSite]) -> tuple[KeptMatrix, ...]:
    """List the matrices of a model that are in none of its linear layers, stored and quantised ones too, in order."""
    linear = {name: site for site in sites for name in site.names}
    weights = {id(p): site.name for site in linear.values() for p in site.module.parameters()}
    found: dict[int, tuple[list[str], Tensor, str]] = {}
    for owner, module, packed, structured in _modules(model, linear):
        for name, tensor in _matrices(module, packed):
            path = f"{owner}.{name}" if owner else name
            reason = _reason(module, tensor, name, structured)
            if id(tensor) in weights:
                reason += f"; it is the weight of {weights[id(tensor)]} too"
            found.setdefault(id(tensor), ([], tensor, reason))[0].append(path)
    return tuple(
        KeptMatrix(tuple(names), tuple(tensor.shape), tensor.numel(), reason)
        for names, tensor, reason in found.values()
    )


def share_in(model: nn.Module, sites: Iterable[LinearSite], kept: Iterable[KeptMatrix]) -> float:
    """The share of a model's numbers, with the stored and quantised ones that are kept, in its linear layers."""
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = sum(line.parameters for line in kept if named.isdisjoint(line.names))
    linear = {id(p): p.numel() for site in sites for p in site.module.parameters()}
    return sum(linear.values()) / max(1, sum(p.numel() for p in model.parameters()) + stored)


def _modules(
    model: nn.Module, linear: Mapping[str, LinearSite]
) -> Iterator[tuple[str, nn.Module, dict[str, Tensor], str | None]]:
    """All modules outside of linear layers, their quantised weights, and the structured layer that they are part of."""
    inside: dict[str, str] = {}
    done = set(linear)
    for name, module in model.named_modules(remove_duplicate=False):
        if name in linear or not done.isdisjoint(_parents(name)):
            continue
        parent = inside.get(name.rpartition(".")[0])
        if parent is None and isinstance(module, StructuredLinear | ConcatLinear | AdaptedLinear):
            parent = type(module).__name__
        if parent is not None:
            inside[name] = parent
        packed = _packed_weights(module)
        if packed:
            done.add(name)
        yield name, module, packed, parent


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _packed_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights that torch.ao keeps where neither parameters nor buffers show them."""
    if "quantized" not in type(module).__module__:
        return {}
    weight, several = getattr(module, "weight", None), getattr(module, "get_weight", None)
    if callable(weight):
        weight = _called(weight)
    if isinstance(weight, Tensor) and "weight" not in module._parameters:
        return {"weight": weight}
    found = _called(several) if callable(several) else None
    return {name: each for name, each in found.items() if isinstance(each, Tensor)} if isinstance(found, dict) else {}


def _called(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return None


def _matrices(module: nn.Module, packed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    stored = {name: buffer for name, buffer in module._buffers.items() if "weight" in name}
    for name, tensor in {**module._parameters, **stored, **packed}.items():
        if tensor is not None and sum(size > 1 for size in _shape(tensor)) > 1:
            yield name, tensor


def _shape(tensor: Tensor) -> tuple[int, ...]:
    try:
        return tuple(tensor.shape)
    except (RuntimeError, ValueError):  # a lazy layer that has not been called
        return ()


def _reason(module: nn.Module, tensor: Tensor, name: str, structured: str | None) -> str:
    kind = type(module).__name__
    if structured is not None:
        return f"it is part of {structured}, structured already"
    if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()) or "quantized" in kind.lower():
        return f"it is quantised ({kind}, {str(tensor.dtype).removeprefix('torch.')}), with no numbers to project"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "it is an embedding, looked up and not multiplied by"
    if isinstance(module, _ConvNd):
        return f"it is a convolution ({kind})"
    if sum(size > 1 for size in tensor.shape) > 2:
        return f"it holds {math.prod(tensor.shape[:-2]):,} matrices in one tensor ({kind}), as fused experts do"
    return f"it belongs to {kind}, which is not a linear layer that can be replaced"
