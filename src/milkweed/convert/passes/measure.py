"""Whether a structured layer is faster than the dense one, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from milkweed.convert.input_moments import evaluating
from milkweed.convert.passes.base import Draft, Pass
from milkweed.convert.sites import LinearSite

_SAMPLES = 5


def measured_speedups(
    sites: Mapping[str, LinearSite], layers: Mapping[str, nn.Module], tokens: int
) -> dict[str, float]:
    """Time converted layers against the dense ones, each kind once: sizes, configuration and dtype.

    Given are medians of alternating runs, dense over converted, by name; nothing for layers on the meta device.
    """
    known: dict[object, float] = {}
    found: dict[str, float] = {}
    for name, layer in layers.items():
        dense = sites[name].module
        weight = dense.weight
        if not isinstance(weight, Tensor) or weight.is_meta:
            continue
        shapes = tuple(tuple(p.shape) for p in layer.parameters())
        kind = (sites[name].in_features, sites[name].out_features, shapes, weight.dtype, weight.device)
        if kind not in known:
            x = torch.randn(tokens, sites[name].in_features, device=weight.device).to(weight.dtype)
            known[kind] = _ratio(dense, layer, x)
        found[name] = known[kind]
    return found


def _ratio(dense: nn.Module, layer: nn.Module, x: Tensor) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    with evaluating(dense), evaluating(layer):
        for module in (dense, layer):
            module(x)  # plans and buffers are made at the first call
        for _ in range(_SAMPLES):
            for module, taken in zip((dense, layer), times, strict=True):
                taken.append(_seconds(module, x))
    return statistics.median(times[0]) / statistics.median(times[1])


def _seconds(module: nn.Module, x: Tensor) -> float:
    _finish(x.device)
    start = time.perf_counter()
    module(x)
    _finish(x.device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Measure(Pass):
    """Times converted layers against the dense ones."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def run(self, draft: Draft) -> None:
        """Measure the layers."""
        draft.speedups = measured_speedups(draft.sites, draft.layers, self.tokens)
