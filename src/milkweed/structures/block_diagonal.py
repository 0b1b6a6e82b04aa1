"""Block-diagonal matrices."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from milkweed import ops
from milkweed._registry import register
from milkweed.structures.base import StructuredMatrix, check_crop, check_numbers


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BlockDiagonal(StructuredMatrix):
    """Blocks along the diagonal, all of one shape.

    Args:
        weight: (k, q, p): k blocks of q × p.
        crop: (rows, columns) kept from the top left of the k q × k p matrix; all by default.

    Example:
        >>> W = mw.structures.BlockDiagonal(torch.ones(2, 1, 3))  # two blocks of 1 × 3
        >>> W.to_dense()
        tensor([[1., 1., 1., 0., 0., 0.],
                [0., 0., 0., 1., 1., 1.]])
    """

    weight: Tensor
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_numbers("weight", self.weight, 3)
        check_crop(self.crop, self._full_shape)

    @property
    def _full_shape(self) -> tuple[int, int]:
        k, q, p = self.weight.shape
        return k * q, k * p

    def _apply(self, x: Tensor) -> Tensor:
        return ops.block_diagonal_mm(x, self.weight)

    def _transpose(self) -> StructuredMatrix:
        return BlockDiagonal(self.weight.mT)

    def _flops(self) -> int:
        return 2 * self.weight.numel()

    def inverse(self) -> StructuredMatrix:
        """Invert every block."""
        self._check_invertible()
        return BlockDiagonal(torch.linalg.inv(self.weight))

    def _solve(self, y: Tensor) -> Tensor:
        self._check_invertible()
        dtype = torch.promote_types(y.dtype, self.dtype)
        k, _, p = self.weight.shape
        blocks = y.to(dtype).unflatten(-1, (k, p)).unsqueeze(-1)
        return torch.linalg.solve(self.weight.to(dtype), blocks).flatten(-3)

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Multiply the blocks' determinants."""
        self._check_invertible()
        sign, logarithm = torch.linalg.slogdet(self.weight)
        return sign.prod(), logarithm.sum()
