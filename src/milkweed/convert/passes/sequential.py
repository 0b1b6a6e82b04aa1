"""Projecting layer by layer: each layer is fitted to what the dense model gives, from what the converted one reads."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.experts import in_experts
from milkweed.convert.input_moments import (
    InputMoments,
    ReachedError,
    Reading,
    attention_mask,
    evaluating,
    run_batch,
    run_until_reached,
    strips,
    valid_rows,
)
from milkweed.convert.passes.layer import joined, project_linear, project_site
from milkweed.convert.routing import Routing
from milkweed.convert.sites import LinearSite, replace
from milkweed.nn.structured_linear import LayerConfig

# Directions that the converted model hardly reads keep the dense weight: a share of the mean eigenvalue.
_RIDGE = 1e-2


class _PairedMoments:
    """Moments of a layer's inputs in the dense model, x, and in the converted one, z, and of both together."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.x, self.z = InputMoments(n, device), InputMoments(n, device)
        self._xz = torch.zeros(n, n, dtype=torch.float64, device=device)  # the sum of (x - E[x]) (z - E[z])ᵀ

    def add(self, x: Tensor, z: Tensor) -> None:
        x, z = self.x.add(x), self.z.add(z)
        for start, stop in strips(len(self._xz)):
            self._xz[start:stop] += x[:, start:stop].T @ z

    def passed(self, weight: Tensor, centred: bool) -> Tensor:
        """E[W x zᵀ], centred less the product of the means."""
        found = (weight @ self._xz).div_(self.x.count)
        return found if centred else found.addr_(weight @ self.x.mean, self.z.mean)


def project_sequentially(
    model: nn.Module,
    choices: Mapping[str, LayerConfig],
    sites: Mapping[str, LinearSite],
    batches: Sequence[Any],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, nn.Module], dict[str, float | None]]:
    """Project layers in the order in which the model calls them, each on top of those before it.

    For a layer with dense weight W the outputs W x of the dense model are regressed on the inputs z that the converted
    model gives the same layer, W' = E[W x zᵀ] E[z zᵀ]⁻¹, and W' is projected for inputs z. Errors of earlier layers are
    thus made good where they can be. Where there is a bias, moments are centred and the bias takes the mean. Inputs are
    paired by their places: experts are sent what the dense model sends them, and an expert that gets nothing is
    projected for its weights. Models that choose inputs by their values in other ways are better projected without
    this. Batches are run once for every group of layers that read one input.

    Given are the converted layers and their relative output errors √(E‖y − ŷ‖² / E‖y‖²), bias aside, by name; None for
    a layer that got no inputs.

    Source:
        The regression on converted inputs is that of layer-wise quantisation, e.g. GPFQ (arXiv 2201.11113); the
        projection is `milkweed.project_monarch`'s.
    """
    converted = _sharing_copy(model)
    layers: dict[str, nn.Module] = {}
    errors: dict[str, float | None] = {}
    with evaluating(model), evaluating(converted):
        for group, once in _groups(model, {name: sites[name].module for name in choices}, batches):
            moments = _moments(model, converted, group[0], once, batches)
            for name in group:
                layers[name], errors[name] = _fit(sites[name], choices[name], moments)
                replace(converted, sites[name].names, layers[name])
            advance(len(group))
    for name in in_experts(model, choices) - layers.keys():
        layers[name], errors[name] = project_site(sites[name], choices[name], None), None
        advance(1)
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


def _groups(model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Any]) -> list[tuple[list[str], bool]]:
    """Layers in the order of their first calls, those that always read one tensor together, and if called only once."""
    first: dict[str, str] = {}  # the layer that reads a layer's tensor first
    once: dict[str, bool] = {}
    for batch in batches:
        calls = _calls(model, layers, batch)
        counts = Counter(name for name, _ in calls)
        readers: list[tuple[str, Reading]] = []
        for name, reading in calls:
            leader = next((other for other, seen in reversed(readers) if seen.same_as(reading)), name)
            readers.append((leader, reading))
            # Several calls, or another company in another batch: such a layer is fitted by itself.
            together = once.get(name, True) and counts[name] == 1 and counts[leader] == 1
            first[name] = leader if together and first.get(name, leader) == leader else name
            once[name] = once.get(name, True) and counts[name] == 1
    groups: dict[str, list[str]] = {}
    for name, leader in first.items():
        groups.setdefault(leader if once[leader] and once[name] else name, []).append(name)
    return [(group, once[group[0]]) for group in groups.values()]


def _calls(model: nn.Module, layers: Mapping[str, nn.Module], batch: Any) -> list[tuple[str, Reading]]:
    """Which layers a forward pass calls, in order, and what they read."""
    calls: list[tuple[str, Reading]] = []

    def watch(name: str) -> Any:
        return lambda module, inputs: calls.append((name, Reading.of(name, inputs, batch)))

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _moments(model: nn.Module, converted: nn.Module, name: str, once: bool, batches: Sequence[Any]) -> _PairedMoments:
    total: _PairedMoments | None = None
    routing = Routing(model)
    for batch in batches:
        with routing.noted():
            read = _inputs(model, name, once, batch)
        mask = routing.mask(name, attention_mask(batch, name))
        with routing.repeated_in(converted):
            found = _inputs(converted, name, once, batch)
        if [x.shape for x in read] != [z.shape for z in found]:
            raise ValueError(
                f"layer {name!r} reads other numbers of inputs in the converted model than in the dense one, which "
                "sequential=True cannot pair, as where inputs are chosen by their values; skip it with the rule "
                f"{{{name!r}: None}}, or leave sequential out"
            )
        for x, z in zip(read, found, strict=True):
            total = total or _PairedMoments(x.shape[-1], x.device)
            for rows in zip(valid_rows(x, mask), valid_rows(z, mask), strict=True):
                total.add(*rows)
    if total is None or not total.x.count:
        raise ValueError(f"calibration never reached layer {name!r}; skip it with the rule {{{name!r}: None}}")
    if not (total.x.is_finite() and total.z.is_finite()):
        raise ValueError(
            f"calibration gave layer {name!r} inputs that are NaN, infinite or too large to square; clean the batches"
        )
    return total


def _inputs(model: nn.Module, name: str, once: bool, batch: Any) -> list[Tensor]:
    """What a layer reads in one forward pass, which ends there if the layer is called only once."""
    found: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        if once:
            raise ReachedError

    handle = model.get_submodule(name).register_forward_pre_hook(hook)
    try:
        run_until_reached(model, batch)
    finally:
        handle.remove()
    return found


def _fit(site: LinearSite, config: LayerConfig, moments: _PairedMoments) -> tuple[nn.Module, float]:
    centred = site.module.bias is not None
    zz = moments.z.covariance(centred)
    parts, lost, whole = [], 0.0, 0.0
    fitted = _regressed(site.linears(), moments, zz, centred)
    for linear, weight in zip(fitted, (linear.weight.detach().double() for linear in site.linears()), strict=True):
        part = project_linear(site.name, linear, config, zz)
        found = part.matrix().to_dense().detach().double()
        if part.bias is not None:
            part.bias.add_((weight @ moments.x.mean - found @ moments.z.mean).to(part.bias.dtype))
        both = float(moments.passed(weight, centred).mul_(found).sum())
        lost += moments.x.energy(weight, centred) - 2 * both + moments.z.energy(found, centred)
        whole += moments.x.energy(weight, centred=False)
        parts.append(part)
    error = (max(lost, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
    return joined(site, parts), error


def _regressed(linears: list[nn.Linear], moments: _PairedMoments, zz: Tensor, centred: bool) -> list[nn.Linear]:
    """Let each weight W become E[W x zᵀ] E[z zᵀ]⁻¹: itself where nothing before is converted, or nothing varies."""
    if not zz.any():
        return linears
    ridge = _RIDGE * float(zz.diagonal().mean())
    factors = torch.linalg.lu_factor(zz + ridge * torch.eye(len(zz)).to(zz))
    for linear in linears:
        weight = linear.weight.detach().double()
        target = moments.passed(weight, centred).add_(weight, alpha=ridge)
        found = torch.linalg.lu_solve(*factors, target, left=False)
        linear.weight = nn.Parameter(found.to(linear.weight.dtype), linear.weight.requires_grad)
    return linears
