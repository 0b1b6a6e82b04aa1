"""What a linear layer costs: parameters and operations, dense and structured."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from milkweed.convert.configs import LayerConfig
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


class Costs(NamedTuple):
    """Parameters of a layer, bias included, and its operations for one input."""

    parameters: int
    flops: int

    def saves(self, dense: Costs) -> bool:
        """Tell whether something is gained.

        Args:
            dense: What the dense layer costs.

        Returns:
            Whether there are fewer parameters or fewer operations.
        """
        return self.parameters < dense.parameters or self.flops < dense.flops


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of a layer.

    Args:
        module: The layer.

    Returns:
        How many numbers they hold.
    """
    return sum(p.numel() for p in module.parameters())


def dense_costs(site: LinearSite) -> Costs:
    """Count what a layer costs as it is.

    Args:
        site: The layer.

    Returns:
        Its costs.
    """
    return Costs(count_parameters(site.module), 2 * site.in_features * site.out_features)


def layer_costs(layer: nn.Module) -> Costs:
    """Count what a structured layer costs.

    Args:
        layer: The layer, or several side by side.

    Returns:
        Its costs.
    """
    parts = list(layer.parts) if isinstance(layer, ConcatLinear) else [layer]
    flops = sum(part.matrix().flops(1) for part in parts if isinstance(part, StructuredLinear))
    return Costs(count_parameters(layer), flops)


def structured_costs(site: LinearSite, config: LayerConfig) -> Costs:
    """Count what a layer would cost, without projecting it.

    Args:
        site: The layer.
        config: What it would become.

    Returns:
        The costs.

    Raises:
        ValueError: The layer cannot have this configuration.
    """
    found = [layer_costs(config.empty(linear)) for linear in site.linears()]
    return Costs(sum(each.parameters for each in found), sum(each.flops for each in found))
