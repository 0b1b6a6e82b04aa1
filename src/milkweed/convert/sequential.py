"""Projecting layer by layer: each layer is fitted to what the dense model gives, from what the converted one reads."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.calibrate import attention_mask, evaluating, run_batch, valid_rows
from milkweed.convert.configs import LayerConfig
from milkweed.convert.sites import LinearSite, replace
from milkweed.nn.structured_linear import ConcatLinear

# Directions that the converted model hardly reads keep the dense weight: a share of the mean eigenvalue.
_RIDGE = 1e-2


class _ReachedError(Exception):
    """Ends a forward pass once the layers that are looked at have been called."""


@dataclasses.dataclass
class _PairedMoments:
    """Sums over pairs of a layer's inputs in the dense model, x, and in the converted one, z."""

    count: int
    x: Tensor
    z: Tensor
    xx: Tensor
    xz: Tensor
    zz: Tensor

    @classmethod
    def of(cls, x: Tensor, z: Tensor) -> _PairedMoments:
        x, z = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (x, z))
        sums = (x.sum(0), z.sum(0), x.T @ x, x.T @ z, z.T @ z)
        return cls(len(x), *(each.double() for each in sums))

    def __add__(self, other: _PairedMoments) -> _PairedMoments:
        return _PairedMoments(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def project_sequentially(
    model: nn.Module,
    choices: Mapping[str, LayerConfig],
    sites: Mapping[str, LinearSite],
    batches: Sequence[Any],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Project layers in the order in which the model calls them, each on top of those before it.

    For a layer with dense weight W the outputs W x of the dense model are regressed on the inputs z that the converted
    model gives the same layer, W' = E[W x zᵀ] E[z zᵀ]⁻¹, and W' is projected for inputs z. Errors of earlier layers are
    thus made good where they can be. Where there is a bias, moments are centred and the bias takes the mean.

    Args:
        model: The dense model; it is not changed.
        choices: What each layer becomes, by name.
        sites: The layers by name.
        batches: As for `milkweed.convert.calibrate.Calibration`; run once for every group of layers that read one
            input.
        advance: Called with the number of layers done after each group.

    Returns:
        The converted layers and their relative output errors √(E‖y − ŷ‖² / E‖y‖²), bias aside, by name.

    Raises:
        ValueError: A layer is never reached, or reads NaN or infinity.

    Source:
        The regression on converted inputs is that of layer-wise quantisation, e.g. GPFQ (arXiv 2201.11113); the
        projection is `milkweed.project_monarch`'s.
    """
    converted = _sharing_copy(model)
    layers: dict[str, nn.Module] = {}
    errors: dict[str, float] = {}
    with evaluating(model), evaluating(converted):
        for group, once in _groups(model, {name: sites[name].module for name in choices}, batches[0]):
            moments = _moments(model, converted, group[0], once, batches)
            for name in group:
                layers[name], errors[name] = _fit(sites[name], choices[name], moments)
                replace(converted, sites[name].names, layers[name])
            advance(len(group))
    missing = [name for name in choices if name not in layers]
    if missing:
        raise ValueError(
            f"calibration never reached layer {missing[0]!r}; skip it with the rule {{{missing[0]!r}: None}}"
        )
    return layers, errors


def _sharing_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of a model, not its parameters and buffers: replaced layers are then all that it takes."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _groups(model: nn.Module, layers: Mapping[str, nn.Module], batch: Any) -> list[tuple[list[str], bool]]:
    """Layers in the order of their first calls, neighbours that read the same tensor together, and if called once."""
    calls: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Any:
        return lambda module, inputs: calls.append((name, inputs[0]))

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(name for name, _ in calls)
    groups: list[tuple[list[str], bool]] = []
    done: set[str] = set()
    latest: Tensor | None = None
    for name, x in calls:
        if name in done:
            continue
        once = counts[name] == 1
        if x is latest and once and groups[-1][1]:
            groups[-1][0].append(name)
        else:
            groups.append(([name], once))
        done.add(name)
        latest = x
    return groups


def _moments(model: nn.Module, converted: nn.Module, name: str, once: bool, batches: Sequence[Any]) -> _PairedMoments:
    total: _PairedMoments | None = None
    for batch in batches:
        mask = attention_mask(batch)
        pairs = zip(_inputs(model, name, once, batch), _inputs(converted, name, once, batch), strict=True)
        for x, z in pairs:
            moments = _PairedMoments.of(valid_rows(x, mask), valid_rows(z, mask))
            total = moments if total is None else total + moments
    if total is None or total.count == 0:
        raise ValueError(f"calibration never reached layer {name!r}; skip it with the rule {{{name!r}: None}}")
    if not (total.xx.isfinite().all() and total.zz.isfinite().all()):
        raise ValueError(f"calibration gave layer {name!r} NaN or infinite inputs; clean the batches")
    return total


def _inputs(model: nn.Module, name: str, once: bool, batch: Any) -> list[Tensor]:
    """What a layer reads in one forward pass, which ends there if the layer is called only once."""
    found: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        if once:
            raise _ReachedError

    handle = model.get_submodule(name).register_forward_pre_hook(hook)
    try:
        run_batch(model, batch)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found


def _fit(site: LinearSite, config: LayerConfig, moments: _PairedMoments) -> tuple[nn.Module, float]:
    centred = site.module.bias is not None
    n = moments.count
    x, z = (moments.x / n, moments.z / n) if centred else (torch.zeros_like(moments.x), torch.zeros_like(moments.z))
    energy = moments.xx / n
    xx, xz, zz = energy - x.outer(x), moments.xz / n - x.outer(z), moments.zz / n - z.outer(z)
    ridge = _RIDGE * zz.diagonal().mean() * torch.eye(len(zz)).to(zz)
    # E[x zᵀ] E[z zᵀ]⁻¹, which is the identity where nothing before has been converted.
    passage = torch.linalg.solve(zz + ridge, xz + ridge, left=False)
    parts, lost, whole = [], 0.0, 0.0
    for linear in site.linears():
        weight = linear.weight.detach().double()
        linear.weight = nn.Parameter((weight @ passage).to(linear.weight.dtype), linear.weight.requires_grad)
        part = config.project(linear, zz)
        found = part.matrix().to_dense().detach().double()
        if part.bias is not None:
            part.bias.add_((weight @ x - found @ z).to(part.bias.dtype))
        lost += float(((weight @ xx) * weight).sum() - 2 * ((weight @ xz) * found).sum() + ((found @ zz) * found).sum())
        whole += float(((weight @ energy) * weight).sum())
        parts.append(part)
    error = (max(lost, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
    return (parts[0] if len(parts) == 1 else ConcatLinear(parts).train(site.module.training)), error
