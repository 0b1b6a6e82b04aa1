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
    parts = [_project(site.name, linear, config, moments) for linear in site.linears()]
    return parts[0] if len(parts) == 1 else ConcatLinear(parts).train(site.module.training)


def project_linear(name: str, linear: nn.Linear, config: LayerConfig, covariance: Tensor | None) -> StructuredLinear:
    """Project one matrix, and name the layer if that fails.

    Args:
        name: Of the layer that it is part of.
        linear: The matrix and its bias.
        config: What it becomes.
        covariance: Of its inputs; if it is zero, as where inputs never vary, weights are kept as without one.

    Returns:
        The structured layer.

    Raises:
        ValueError: The layer cannot have this configuration, or its weight or bias is not finite.
    """
    if linear.bias is not None and not linear.bias.isfinite().all():
        raise ValueError(f"layer {name!r} cannot be converted: its bias holds NaN or infinity")
    try:
        return config.project(linear, covariance if covariance is not None and covariance.any() else None)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"layer {name!r} cannot become {config}: {error}") from error


@torch.no_grad()
def _project(name: str, linear: nn.Linear, config: LayerConfig, moments: InputMoments | None) -> StructuredLinear:
    if linear.weight.is_meta:
        try:
            return config.empty(linear)
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot become {config}: {error}") from error
    if moments is None:
        return project_linear(name, linear, config, None)
    part = project_linear(name, linear, config, moments.covariance(centred=linear.bias is not None))
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
        # In float64: squares of what float32 holds need not fit float32.
        lost += float(torch.linalg.vector_norm(difference, dtype=torch.float64) ** 2)
        whole += float(torch.linalg.vector_norm(weight, dtype=torch.float64) ** 2)
        if moments is not None:
            lost_output += max(moments.energy(difference, centred=linear.bias is not None), 0.0)
            whole_output += moments.energy(weight, centred=False)
    relative = (lost / whole) ** 0.5 if whole > 0 else 0.0
    if moments is None:
        return relative, None
    return relative, (lost_output / whole_output) ** 0.5 if whole_output > 0 else 0.0


def _difference(linear: nn.Linear, part: StructuredLinear) -> Tensor:
    """W - M, in float32 at least."""
    wide = torch.promote_types(linear.weight.dtype, torch.float32)
    return linear.weight.to(wide) - part.matrix().to(dtype=wide).to_dense()
