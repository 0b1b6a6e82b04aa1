"""Block-diagonal multiply in one batched matrix product, for programs that other runtimes run."""

from __future__ import annotations

from torch import Tensor

from milkweed.ops._epilogue import finish


def block_diagonal_mm(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """Multiply by a block-diagonal matrix; see `milkweed.ops.block_diagonal_mm`."""
    k, q, p = weight.shape
    y = (x.reshape(-1, k, p).transpose(0, 1) @ weight.transpose(1, 2)).transpose(0, 1).reshape(-1, k * q)
    return finish(y, bias, activation)
