"""Sums of Monarch and low-rank matrices as one Monarch matrix: the ranks of their slices add up."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import checked
from milkweed.structures.low_rank import LowRank
from milkweed.structures.monarch import Monarch


@checked(but=("a", "b"))
def add_monarch(a: Monarch, b: Monarch | LowRank) -> Monarch:
    """Write a + b as one Monarch matrix with the blocks of a, exactly.

    Each slice of a keeps its factors and takes those of b beside them, so its rank becomes the sum of both. Where that
    is more than the smaller side of a slice, the slice is multiplied out: it never needs more than that.

    Args:
        a: (m, n).
        b: (m, n), a Monarch matrix of any number of blocks, or a low-rank one. If the blocks are those of a, the ranks
            of slices are added; a low-rank matrix adds its rank to every slice.

    Returns:
        (m, n); every slice has as many middle features as the one that needs most. Differentiable in both.

    Raises:
        ValueError: The shapes differ.
        TypeError: One is another structure.

    Source:
        The slices of a Monarch matrix are independent low-rank matrices (arXiv 2204.00595, appendix C), and a sum of
        two low-rank matrices has the factors of both side by side.

    Example:
        >>> a = mw.Monarch(torch.randn(4, 4, 8), torch.randn(4, 6, 4))
        >>> b = mw.structures.LowRank(torch.randn(24, 2), torch.randn(2, 32))
        >>> total = mw.structures.add_monarch(a, b)
        >>> total.shape, int(a.slice_ranks().max()), int(total.slice_ranks().max())
        ((24, 32), 1, 3)
        >>> torch.allclose(total.to_dense(), a.to_dense() + b.to_dense(), atol=1e-4)
        True
    """
    if not isinstance(a, Monarch):
        raise TypeError(f"a must be a Monarch matrix; got {type(a).__name__}")
    if not isinstance(b, Monarch | LowRank):
        raise TypeError(f"b must be a Monarch or a LowRank matrix; got {type(b).__name__}")
    if a.shape != b.shape:
        raise ValueError(f"b must have the shape of a, {a.shape}; got {b.shape}")
    return _joined([a, _as_monarch(b)], _Slices.of(a))


def sum_in_blocks(terms: Sequence[Monarch | LowRank], nblocks: int) -> Monarch:
    """Write a sum as one Monarch matrix of so many blocks per factor, exactly, whatever blocks the terms have."""
    m, n = terms[0].shape
    return _joined(
        [_as_monarch(term) for term in terms], _Slices(nblocks, nblocks, -(-n // nblocks), -(-m // nblocks), (m, n))
    )


@overload
def matrix_rows(matrix: Monarch, start: int, stop: int) -> Monarch: ...
@overload
def matrix_rows(matrix: LowRank, start: int, stop: int) -> LowRank: ...
@overload
def matrix_rows(matrix: Monarch | LowRank, start: int, stop: int) -> Monarch | LowRank: ...
def matrix_rows(matrix: Monarch | LowRank, start: int, stop: int) -> Monarch | LowRank:
    """Cut rows out of a matrix. A Monarch matrix keeps its blocks, and its ranks where they divide ``start``.

    Args:
        matrix: (m, n).
        start: The first row; from -5 on, five rows of zeros are put above the matrix.
        stop: One behind the last row; beyond m, rows of zeros are put below it.

    Returns:
        (stop - start, n).
    """
    if isinstance(matrix, LowRank):
        above, below = max(0, -start), max(0, stop - matrix.shape[0])
        left = F.pad(matrix.left, (0, 0, above, below))[start + above : stop + above]
        return LowRank(left, matrix.right)
    slices, rows = _Slices.of(matrix), stop - start
    return _joined([matrix], slices._replace(s=-(-rows // slices.l), shape=(rows, slices.shape[1])), start)


class _Slices(NamedTuple):
    """How a matrix of a shape, padded, is cut: into k × l slices of s rows and p columns."""

    k: int
    l: int  # noqa: E741 - the paper's letter
    p: int
    s: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: Monarch) -> _Slices:
        return cls(*matrix.nblocks, matrix.right.shape[2], matrix.left.shape[1], matrix.shape)


def _as_monarch(matrix: Monarch | LowRank) -> Monarch:
    """A low-rank matrix is a Monarch matrix of one block."""
    return matrix if isinstance(matrix, Monarch) else Monarch(matrix.right[None], matrix.left[None])


def _joined(terms: Sequence[Monarch], slices: _Slices, first_row: int = 0) -> Monarch:
    """The sum of the terms' rows from the first on, as a Monarch matrix with these slices."""
    k, l, p, s, (m, _) = slices  # noqa: E741 - the paper's letter
    dtype = functools.reduce(torch.promote_types, (term.dtype for term in terms))
    pairs: list[tuple[Tensor, Tensor]] = []
    for block in range(k):
        columns = [_Columns(term, block * p, p) for term in terms]
        for target in range(l):
            rows = torch.arange(target, l * s, l)
            rows = torch.where(rows < m, rows + first_row, -1)  # padding is no row of the terms
            tall, wide = zip(*(each.factors(rows) for each in columns), strict=True)
            pairs.append(_least(torch.cat([t.to(dtype) for t in tall], 1), torch.cat([w.to(dtype) for w in wide])))
    rank = max(1, *(tall.shape[1] for tall, _ in pairs))
    talls = torch.stack([F.pad(tall, (0, rank - tall.shape[1])) for tall, _ in pairs])
    wides = torch.stack([F.pad(wide, (0, 0, 0, rank - wide.shape[0])) for _, wide in pairs])
    # Feature j of slice (k, l) is feature j l_tot + l of right block k, and input k rank + j of left block l.
    right = wides.view(k, l, rank, p).transpose(1, 2).reshape(k, rank * l, p)
    left = talls.view(k, l, s, rank).permute(1, 2, 0, 3).reshape(l, s, k * rank)
    return Monarch(right, left, slices.shape)


class _Columns:
    """Some neighbouring columns of a Monarch matrix, and the middle features that read them."""

    # Which features meet which rows and columns follows from the sizes alone, so it is found on the CPU.
    def __init__(self, matrix: Monarch, first: int, count: int) -> None:
        k, q, p = matrix.right.shape
        column = torch.arange(first, first + count)
        feature = torch.arange(k * q)
        feature = feature[(feature // q >= first // p) & (feature // q <= (first + count - 1) // p)]
        read = (feature[:, None] // q == column // p) & (column < matrix.shape[1])
        numbers = matrix.right[(feature // q)[:, None], (feature % q)[:, None], column % p]
        self.matrix, self.feature, self.read = matrix, feature, read.any(1)
        self.wide = torch.where(read.to(matrix.device), numbers, 0)

    def factors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The submatrix of these columns and of some rows as a product; rows that there are none of are zero."""
        m, l = self.matrix.shape[0], self.matrix.left.shape[0]  # noqa: E741 - the paper's letter
        row = rows.clamp(0, m - 1)[:, None]
        written = (self.feature % l == row % l) & (row == rows[:, None])
        used = (written.any(0) & self.read).nonzero()[:, 0]
        feature = self.feature[used]
        numbers = self.matrix.left[feature % l, row // l, feature // l]
        return torch.where(written[:, used].to(self.matrix.device), numbers, 0), self.wide[used]


def _least(tall: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """The same product through no more features than its smaller side has."""
    rank, least = tall.shape[1], min(tall.shape[0], wide.shape[1])
    if rank <= least:
        return tall, wide
    identity = torch.eye(least, dtype=tall.dtype, device=tall.device)
    return (tall @ wide, identity) if wide.shape[1] == least else (identity, tall @ wide)
