"""Projecting one linear layer, and how far the converted layer is from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from milkweed.convert.calibrate import InputMoments
from milkweed.convert.configs import LayerConfig
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


def project_site(site: LinearSite, config: LayerConfig, moments: InputMoments | None) -> nn.Module:
    """Convert one layer.

    Args:
        site: The layer.
        config: What it becomes.
        moments: Of its inputs x: the outputs for these are kept, not the weights. A bias then takes E[(W - M) x].

    Returns:
        The converted layer; on the meta device, without numbers, if the dense one is.

    Raises:
        ValueError: The layer cannot have this configuration, or its weight is not finite.
    """
    try:
        parts = [_project(linear, config, moments) for linear in site.linears()]
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"layer {site.name!r} cannot become {config}: {error}") from error
    return parts[0] if len(parts) == 1 else ConcatLinear(parts).train(site.module.training)


@torch.no_grad()
def _project(linear: nn.Linear, config: LayerConfig, moments: InputMoments | None) -> StructuredLinear:
    if linear.weight.is_meta:
        return config.empty(linear)
    if moments is None:
        return config.project(linear, None)
    part = config.project(linear, moments.covariance(centred=linear.bias is not None))
    if part.bias is not None:
        part.bias.add_((_difference(linear, part).double() @ moments.mean).to(part.bias.dtype))
    return part


@torch.no_grad()
def weight_and_output_error(
    site: LinearSite, layer: nn.Module, moments: InputMoments | None
) -> tuple[float | None, float | None]:
    """Measure how far a converted layer is from the dense one.

    Args:
        site: The dense layer.
        layer: The converted one, from `project_site` with these moments.
        moments: Of the inputs.

    Returns:
        ‖W − M‖ / ‖W‖, and √(E‖y − ŷ‖² / E‖W x‖²) of the outputs y and ŷ where there are moments; None on the meta
        device.
    """
    lost = whole = lost_output = whole_output = 0.0
    parts = layer.parts if isinstance(layer, ConcatLinear) else [layer]
    for linear, part in zip(site.linears(), parts, strict=True):
        assert isinstance(part, StructuredLinear)
        if linear.weight.is_meta:
            return None, None
        difference = _difference(linear, part)
        weight = linear.weight.to(difference.dtype)
        lost += float(difference.norm().double() ** 2)
        whole += float(weight.norm().double() ** 2)
        if moments is not None:
            lost_output += max(_energy(difference, moments.covariance(centred=linear.bias is not None)), 0.0)
            whole_output += _energy(weight, moments.covariance(centred=False))
    relative = (lost / whole) ** 0.5 if whole > 0 else 0.0
    if moments is None:
        return relative, None
    return relative, (lost_output / whole_output) ** 0.5 if whole_output > 0 else 0.0


def _difference(linear: nn.Linear, part: StructuredLinear) -> Tensor:
    """W - M, in float32 at least."""
    wide = torch.promote_types(linear.weight.dtype, torch.float32)
    return linear.weight.to(wide) - part.matrix().to(dtype=wide).to_dense()


def _energy(weight: Tensor, covariance: Tensor) -> float:
    """E‖weight x‖²."""
    return float(((weight @ covariance.to(weight.dtype)) * weight).sum(dtype=torch.float64))
