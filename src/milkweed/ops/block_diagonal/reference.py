"""Block-diagonal multiply, by its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.ops._epilogue import finish


def block_diagonal_mm(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """``y[..., k, q] = sum_p weight[k, q, p] x[..., k, p]``, both blocks flattened, then bias and activation."""
    k, q, p = weight.shape
    y = torch.einsum("bkp,kqp->bkq", x.reshape(x.shape[0], k, p), weight).reshape(x.shape[0], k * q)
    return finish(y, bias, activation)
