"""What a linear layer costs: parameters and operations, dense and structured."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import ConcatLinear, LayerConfig, StructuredLinear


class Costs(NamedTuple):
    """Parameters of a layer, bias included, and its operations for one input."""

    parameters: int
    flops: int

    def saves(self, dense: Costs) -> bool:
        """Whether there are fewer parameters or fewer operations than in the dense layer."""
        return self.parameters < dense.parameters or self.flops < dense.flops


def count_parameters(module: nn.Module) -> int:
    """How many numbers the parameters of a layer hold."""
    return sum(p.numel() for p in module.parameters())


def dense_costs(site: LinearSite) -> Costs:
    """What a layer costs as it is."""
    return Costs(count_parameters(site.module), 2 * site.in_features * site.out_features)


def layer_costs(layer: nn.Module) -> Costs:
    """What a structured layer costs, or several side by side."""
    parts = list(layer.parts) if isinstance(layer, ConcatLinear) else [layer]
    flops = sum(part.matrix().flops(1) for part in parts if isinstance(part, StructuredLinear))
    return Costs(count_parameters(layer), flops)


def structured_costs(site: LinearSite, config: LayerConfig) -> Costs:
    """What a layer would cost, without projecting it; a ValueError if it cannot have the configuration."""
    found = [layer_costs(config.empty(linear)) for linear in site.linears()]
    return Costs(sum(each.parameters for each in found), sum(each.flops for each in found))
