"""Complex arithmetic on real pairs (..., 2): what keeps parameters real and graphs exportable."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Complex product.

    Args:
        a: (..., 2).
        b: (..., 2), broadcast with ``a``.

    Returns:
        (..., 2).
    """
    return torch.stack(
        [a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1], a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]], -1
    )


def reciprocal(a: Tensor) -> Tensor:
    """Complex reciprocal.

    Args:
        a: (..., 2), not zero.

    Returns:
        (..., 2).
    """
    return torch.stack([a[..., 0], -a[..., 1]], -1) / a.square().sum(-1, keepdim=True)


def exp(a: Tensor) -> Tensor:
    """Complex exponential.

    Args:
        a: (..., 2).

    Returns:
        (..., 2).
    """
    size = torch.exp(a[..., 0])
    return torch.stack([size * torch.cos(a[..., 1]), size * torch.sin(a[..., 1])], -1)
