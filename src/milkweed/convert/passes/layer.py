"""Projecting one linear layer, and how far the converted layer is from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from milkweed.convert.input_moments import InputMoments
from milkweed.convert.record import mark
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import ConcatLinear, LayerConfig, StructuredLinear


def project_site(site: LinearSite, config: LayerConfig, moments: InputMoments | None) -> nn.Module:
    """Convert one layer; without numbers, on the meta device, if the dense one is there.

    With moments of its inputs x the outputs for these are kept, not the weights, and a bias takes E[(W - M) x].
    """
    return joined(site, [_project(site.name, linear, config, moments) for linear in site.linears()])


def joined(site: LinearSite, parts: Sequence[StructuredLinear]) -> nn.Module:
    """The layer for a place: its matrices together, with what its parent asks a layer for."""
    layer = parts[0] if len(parts) == 1 else ConcatLinear(parts).train(site.module.training)
    if site.marked:
        mark(layer)
    return layer


def project_linear(name: str, linear: nn.Linear, config: LayerConfig, covariance: Tensor | None) -> StructuredLinear:
    """Project one matrix and its bias, and name the layer if that fails."""
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
    """‖W − M‖ / ‖W‖, and √(E‖y − ŷ‖² / E‖W x‖²) of the outputs y and ŷ where there are moments.

    The converted layer is that of `project_site` with these moments. Both are None on the meta device.
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
    if moments is None or not moments.count:
        return relative, None
    return relative, (lost_output / whole_output) ** 0.5 if whole_output > 0 else 0.0


def _difference(linear: nn.Linear, part: StructuredLinear) -> Tensor:
    """W - M, in float32 at least."""
    wide = torch.promote_types(linear.weight.dtype, torch.float32)
    return linear.weight.to(wide) - part.matrix().to(dtype=wide).to_dense()
