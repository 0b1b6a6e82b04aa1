"""Flat block butterfly matrices: the sparse part of Pixelfly."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from milkweed import ops
from milkweed._registry import register
from milkweed.structures.base import StructuredMatrix, check_crop, check_numbers


def butterfly_neighbours(nblocks: int, count: int, device: torch.device | None = None) -> Tensor:
    """The block columns i, i xor 1, i xor 2, i xor 4, ... of each block row i of a flat butterfly: (nblocks, count)."""
    rows = torch.arange(nblocks, device=device)
    return torch.stack([rows, *(rows ^ (1 << stage) for stage in range(count - 1))], 1)


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FlatBlockButterfly(StructuredMatrix):
    """A block-sparse matrix with the pattern of a sum of butterfly factors.

    Block (i, j) is stored for j = i and for j = i with one of its lowest bits flipped. Plus a ``LowRank`` matrix it is
    Pixelfly.

    Args:
        blocks: (nblocks, neighbours, q, p): blocks[i, 0] stands in block column i, blocks[i, t] in block column
            i xor 2^(t-1). nblocks is a power of two.
        crop: (rows, columns) kept from the top left of the nblocks q × nblocks p matrix; all by default.

    Source:
        Chen, Dao et al., Pixelated Butterfly (arXiv 2112.00029), section 3: the first-order ("flat") approximation of a
        product of block butterfly factors.

    Example:
        >>> found = mw.structures.project_flat_butterfly(torch.ones(8, 8), nblocks=4, neighbours=2)
        >>> found.matrix.to_dense()[0]
        tensor([1., 1., 1., 1., 0., 0., 0., 0.])
    """

    blocks: Tensor
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_numbers("blocks", self.blocks, 4)
        nblocks, count = self.blocks.shape[:2]
        most = nblocks.bit_length()
        if nblocks & (nblocks - 1) or count > most:
            raise ValueError(
                f"blocks must be (nblocks, neighbours, q, p) with nblocks a power of two and neighbours <= "
                f"log2(nblocks) + 1; got shape {tuple(self.blocks.shape)}"
            )
        check_crop(self.crop, self._full_shape)

    @property
    def _full_shape(self) -> tuple[int, int]:
        nblocks, _, q, p = self.blocks.shape
        return nblocks * q, nblocks * p

    def neighbours(self) -> Tensor:
        """The block column of every stored block: (nblocks, neighbours) integers."""
        return butterfly_neighbours(self.blocks.shape[0], self.blocks.shape[1], self.blocks.device)

    def _apply(self, x: Tensor) -> Tensor:
        nblocks, count, q, p = self.blocks.shape
        gathered = x.unflatten(-1, (nblocks, p))[..., self.neighbours(), :].flatten(-3)
        return ops.block_diagonal_mm(gathered, self.blocks.transpose(1, 2).reshape(nblocks, q, count * p))

    def _transpose(self) -> StructuredMatrix:
        # Flipping a bit is its own inverse, so row j of the transpose has its blocks in the same columns.
        stages = torch.arange(self.blocks.shape[1], device=self.blocks.device)
        return FlatBlockButterfly(self.blocks[self.neighbours(), stages].mT)

    def _flops(self) -> int:
        return 2 * self.num_parameters
