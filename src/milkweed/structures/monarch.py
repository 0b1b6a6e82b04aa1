"""Monarch matrices as objects."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.structures.base import Expandable, Product, check_crop, check_numbers
from milkweed.structures.block_diagonal import BlockDiagonal
from milkweed.structures.permutation import Permutation


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Monarch(Expandable):
    """Two block-diagonal factors with a permutation after each: P_out · left · P_middle · right.

    ``W[s * l_tot + l, k * p_tot + i]`` is the sum over all q with ``k * q_tot + q ≡ l (mod l_tot)`` of
    ``left[l, s, (k * q_tot + q) // l_tot] * right[k, q, i]``.

    Args:
        right: (k, q, p), applied first.
        left: (l, s, r) with l * r = k * q.
        crop: (rows, columns) kept from the top left of the l s × k p matrix; all by default.

    Source:
        Monarch (arXiv 2204.00595), definition 3.1 (k = l = q = p = r = s = √n) and the rectangular case of its
        appendix, in the layout of the authors' checkpoints. The transpose and the inverse are Monarch matrices up to
        index reversal on both sides, and come as products of the four factors.

    Example:
        >>> W = mw.Monarch(torch.randn(4, 4, 4), torch.randn(4, 4, 4))
        >>> x = torch.randn(16)
        >>> torch.allclose(W @ x, W.to_dense() @ x, atol=1e-4), W.num_parameters
        (True, 128)
    """

    right: Tensor
    left: Tensor
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_numbers("right", self.right, 3)
        check_numbers("left", self.left, 3)
        k, q, _ = self.right.shape
        l, _, r = self.left.shape  # noqa: E741 - the paper's letter
        if l * r != k * q:
            raise ValueError(
                f"left (l, s, r) = {tuple(self.left.shape)} must take what right (k, q, p) = "
                f"{tuple(self.right.shape)} gives: l * r = {l * r}, k * q = {k * q}"
            )
        check_crop(self.crop, self._full_shape)

    @staticmethod
    @checked
    def kronecker(a: Tensor, b: Tensor) -> Monarch:
        """Write A ⊗ B for A (s, k) and B (q, p) as one Monarch matrix (s q × k p), (A ⊗ I)(I ⊗ B)."""
        check_numbers("a", a, 2)
        check_numbers("b", b, 2)
        return Monarch(b.expand(a.shape[1], -1, -1), a.expand(b.shape[0], -1, -1))

    @property
    def nblocks(self) -> tuple[int, int]:
        """Blocks of the right and of the left factor."""
        return self.right.shape[0], self.left.shape[0]

    @property
    def _full_shape(self) -> tuple[int, int]:
        return self.left.shape[0] * self.left.shape[1], self.right.shape[0] * self.right.shape[2]

    def slice_ranks(self) -> Tensor:
        """The largest rank of each slice: the rows that left block l emits, the columns that right block k reads.

        Returns:
            (k, l): the middle features of block k that go to block l. Where l does not divide q they alternate between
            the integers around q / l; where q < l some are 0.
        """
        return slice_ranks(self.right.shape[0], self.right.shape[1], self.left.shape[0])

    def expand(self) -> Product:
        """Write the matrix as factors: the output permutation, left blocks, the middle permutation, right blocks."""
        l, s, r = self.left.shape  # noqa: E741 - the paper's letter
        out, middle = (Permutation.stride(*table, device=self.right.device) for table in ((l, s), (r, l)))
        return Product((out, BlockDiagonal(self.left), middle, BlockDiagonal(self.right)), self.crop)

    def _apply(self, x: Tensor) -> Tensor:
        return ops.monarch_mm(x, self.right, self.left)

    @override
    def to_dense(self) -> Tensor:
        k, q, p = self.right.shape
        l, s, _ = self.left.shape  # noqa: E741 - the paper's letter
        if q % l:
            return super().to_dense()
        right, left = self.right.unflatten(1, (q // l, l)), self.left.unflatten(2, (k, q // l)).to(self.dtype)
        dense = torch.einsum("lskq,kqlp->slkp", left, right.to(self.dtype)).reshape(s * l, k * p)
        m, n = self.shape
        return dense[:m, :n]

    def _check_invertible(self) -> None:
        super()._check_invertible()
        if self.right.shape[1] != self.right.shape[2]:
            raise ValueError(
                f"an invertible Monarch matrix needs square blocks; got right {tuple(self.right.shape)} and left "
                f"{tuple(self.left.shape)}"
            )


def slice_ranks(k: int, q: int, l: int) -> Tensor:  # noqa: E741 - the paper's letter
    """Count the middle features that lead from right block k to left block l: (k, l) integers, whose rows sum to q."""
    target = torch.arange(k * q).view(k, q) % l
    return torch.zeros(k, l, dtype=torch.int64).scatter_add_(1, target, torch.ones_like(target))


@checked
def monarch_shapes(
    in_features: int, out_features: int, nblocks: int | tuple[int, int], rank: int | None = None
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shapes of the factors of a Monarch matrix, padded to whole blocks.

    Args:
        in_features: Columns.
        out_features: Rows.
        nblocks: Blocks per factor, or (blocks of the right one, blocks of the left one).
        rank: Rank of each slice, at most min(in_block, out_block). By default the middle is as wide as the narrower
            side: a middle of min(in_block, out_block) per block for equally many blocks, else whole ranks, at least 1.

    Returns:
        (k, q, p) of the right and (l, s, r) of the left factor.

    Raises:
        ValueError: A size is below 1, there are more blocks than features, slices would be structurally zero (fewer
            than ``nblocks`` features per block), or the rank is out of range.
        TypeError: A size is no integer.

    Example:
        >>> mw.structures.monarch_shapes(100, 200, nblocks=8)  # right (k, q, p) and left (l, s, r)
        ((8, 13, 13), (8, 25, 13))
    """
    numbers = nblocks if isinstance(nblocks, tuple) and len(nblocks) == 2 else (nblocks,)
    for value in (in_features, out_features, *numbers, *(() if rank is None else (rank,))):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(
                "in_features, out_features, nblocks (or a pair of them) and rank must be integers; "
                f"got {in_features!r}, {out_features!r}, nblocks={nblocks!r}, rank={rank!r}"
            )
    k, l = nblocks if isinstance(nblocks, tuple) else (nblocks, nblocks)  # noqa: E741 - the paper's letter
    sizes = {"in_features": (in_features, k), "out_features": (out_features, l)}
    for name, value in (("in_features", in_features), ("out_features", out_features), ("nblocks", min(k, l))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={value}")
    for name, (value, blocks) in sizes.items():
        if blocks > value:
            raise ValueError(f"nblocks={nblocks} needs {name} >= {blocks}; got {name}={value}")
    in_block, out_block = -(-in_features // k), -(-out_features // l)
    narrow = min(in_block, out_block)
    if rank is not None and not 1 <= rank <= narrow:
        raise ValueError(f"rank must be in 1 .. {narrow} (the smaller side of a slice); got rank={rank}")
    if rank is None and k == l:
        if narrow < k:
            name = "in_features" if in_block <= out_block else "out_features"
            raise ValueError(
                f"nblocks={nblocks} needs {name} >= {k * (k - 1) + 1}; got {name}={sizes[name][0]}; "
                f"lower nblocks, or give the rank per slice, e.g. rank=1"
            )
        return (k, narrow, in_block), (l, out_block, narrow)
    inner = max(1, min(k * in_block, l * out_block) // (k * l)) if rank is None else rank
    return (k, l * inner, in_block), (l, out_block, k * inner)
