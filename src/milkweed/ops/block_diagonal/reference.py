"""Block-diagonal multiply, by its definition."""

from __future__ import annotations

import torch
from torch import Tensor


def block_diagonal_mm(x: Tensor, weight: Tensor) -> Tensor:
    """``y[..., k, q] = sum_p weight[k, q, p] x[..., k, p]``, both blocks flattened.

    Args:
        x: (batch, k * p).
        weight: (k, q, p).

    Returns:
        (batch, k * q).
    """
    k, q, p = weight.shape
    return torch.einsum("bkp,kqp->bkq", x.reshape(x.shape[0], k, p), weight).reshape(x.shape[0], k * q)
