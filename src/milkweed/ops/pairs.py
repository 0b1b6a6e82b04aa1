"""Complex arithmetic on real pairs (..., 2): what keeps parameters real and graphs exportable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed.ops._common import widest_dtype
from milkweed.ops.backends import arranged_for_export


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Complex product of (..., 2) and (..., 2), which broadcast."""
    return torch.stack(
        [a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1], a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]], -1
    )


def reciprocal(a: Tensor) -> Tensor:
    """Complex reciprocal of a (..., 2), not zero."""
    # Scaled first: the square of 1e20 is infinite in float32. The scale cancels, and so does its gradient.
    scale = a.detach().abs().amax(-1, keepdim=True)
    scaled = a / scale
    return torch.stack([scaled[..., 0], -scaled[..., 1]], -1) / scaled.square().sum(-1, keepdim=True) / scale


def rotation(a: Tensor) -> Tensor:
    """Multiplication by (..., N, 2) as a real matrix (..., 2 N, 2 N) in the coordinates [Re z, Im z]."""
    re, im = torch.diag_embed(a[..., 0]), torch.diag_embed(a[..., 1])
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)


def exp(a: Tensor) -> Tensor:
    """Complex exponential of (..., 2)."""
    size = torch.exp(a[..., 0])
    return torch.stack([size * torch.cos(a[..., 1]), size * torch.sin(a[..., 1])], -1)


def full_turn(dtype: torch.dtype) -> Tensor | float:
    """2π, in exported programs as a tensor: numbers that are none are stored in float32 there."""
    return torch.tensor(2 * math.pi, dtype=dtype) if arranged_for_export() else 2 * math.pi


def exp_of_steps(a: Tensor, steps: Tensor) -> Tensor:
    """Complex exponential exp(a * steps) of a (..., 2), to the digits of ``a`` however many steps."""
    # The size of a phase takes its digits: 1e4 rad in float32 leave an error of 1e-3.
    wide = widest_dtype(a)
    size = torch.exp(a[..., 0].to(wide) * steps)
    angle = a[..., 1].to(wide) * steps
    turn = full_turn(wide)
    angle = angle - (angle / turn).round() * turn
    return torch.stack([size * torch.cos(angle), size * torch.sin(angle)], -1).to(a.dtype)
