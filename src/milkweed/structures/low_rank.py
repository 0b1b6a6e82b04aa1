"""Low-rank matrices."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from milkweed._registry import register
from milkweed.structures.base import StructuredMatrix, check_numbers


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LowRank(StructuredMatrix):
    """The product of a tall and a wide matrix.

    Args:
        left: (m, rank).
        right: (rank, n), applied first.

    Example:
        >>> W = mw.structures.LowRank(torch.randn(100, 2), torch.randn(2, 300))
        >>> W.shape, W.num_parameters, W.flops(batch=8)
        ((100, 300), 800, 12800)
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        check_numbers("left", self.left, 2)
        check_numbers("right", self.right, 2)
        if self.left.shape[1] != self.right.shape[0]:
            raise ValueError(
                f"left (m, rank) and right (rank, n) must share their rank; got {tuple(self.left.shape)} and "
                f"{tuple(self.right.shape)}"
            )

    @property
    def rank(self) -> int:
        """The largest rank the matrix can have."""
        return self.right.shape[0]

    @property
    def _full_shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def _apply(self, x: Tensor) -> Tensor:
        return x @ self.right.mT @ self.left.mT

    def _transpose(self) -> StructuredMatrix:
        return LowRank(self.right.mT, self.left.mT)

    def _flops(self) -> int:
        return 2 * self.num_parameters
