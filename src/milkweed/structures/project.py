"""The nearest matrix of a structure, in Frobenius norm or for inputs of a known covariance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import checked
from milkweed.structures._spectral import EIGENVALUE_FLOOR, best_low_rank, roots
from milkweed.structures.base import StructuredMatrix, Sum, check_numbers
from milkweed.structures.block_diagonal import BlockDiagonal
from milkweed.structures.chain import Chain
from milkweed.structures.diagonal import Diagonal
from milkweed.structures.flat_butterfly import FlatBlockButterfly, butterfly_neighbours
from milkweed.structures.low_rank import LowRank
from milkweed.structures.toeplitz import Circulant, Toeplitz

M = TypeVar("M", bound=StructuredMatrix)


@dataclasses.dataclass(frozen=True)
class Projection(Generic[M]):
    """A structured matrix and how far it is from the dense one.

    Args:
        matrix: In the dense matrix's dtype.
        relative_error: ‖W − M‖ / ‖W‖ in Frobenius norm; 0 where W is 0.
        output_error: √(E‖(W − M) x‖² / E‖W x‖²) for inputs x of the covariance given; None without one.
        objectives: The squared output error after each half-step of a refinement, the start first.

    Example:
        >>> found = mw.structures.project_diagonal(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> found.matrix.entries, round(found.relative_error, 4)
        (tensor([3., 0.]), 0.8)
    """

    matrix: M
    relative_error: float
    output_error: float | None = None
    objectives: tuple[float, ...] = ()


def prepare(dense: Tensor, input_covariance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Check what is to be projected and bring it, detached, to the precision of the work."""
    # That is float32 at least, and float64 where there is a covariance, whose eigenvalues span many orders.
    check_numbers("dense", dense, 2)
    if dense.is_meta:
        raise ValueError("dense is on the meta device and has no numbers to project; load them first")
    numbers = torch.view_as_real(dense.detach()) if dense.is_complex() else dense.detach()
    if numbers.numel() and not torch.stack(torch.aminmax(numbers)).isfinite().all():  # in one pass, without a mask
        raise ValueError("dense must be finite; it holds NaN or infinity")
    if input_covariance is None:
        return dense.detach().to(torch.promote_types(dense.dtype, torch.float32)), None
    check_numbers("input_covariance", input_covariance, 2)
    n = dense.shape[1]
    covariance = input_covariance.detach().to(torch.promote_types(input_covariance.dtype, torch.float64))
    if covariance.shape != (n, n):
        raise ValueError(
            f"input_covariance must be ({n}, {n}) for dense {tuple(dense.shape)}; got {tuple(covariance.shape)}"
        )
    if not covariance.isfinite().all():
        raise ValueError("input_covariance must be finite; it holds NaN or infinity")
    scale = covariance.abs().max()
    if scale == 0:
        raise ValueError("input_covariance is zero: no calibration sample reached this matrix, or all were zero")
    # By strips: a copy of a large covariance may be all the memory there is.
    strips = range(0, n, 256)
    asymmetry = max(float((covariance[i : i + 256] - covariance[:, i : i + 256].mH).abs().max()) for i in strips)
    if asymmetry > 1e-3 * scale or covariance.diagonal().real.min() < 0:
        raise ValueError("input_covariance must be Hermitian with a non-negative diagonal, E[x x^H] over samples x")
    precise = torch.promote_types(dense.dtype, covariance.dtype)
    if asymmetry > 0:
        covariance = (covariance + covariance.mH) / 2
    return dense.detach().to(precise), covariance.to(precise)


@checked
def as_projection(
    matrix: M,
    dense: Tensor,
    covariance: Tensor | None,
    dtype: torch.dtype,
    objectives: Sequence[float] = (),
    lost: float | None = None,
) -> Projection[M]:
    """Round a projection to its dtype and measure it against the dense matrix."""
    # ``lost`` is ‖W − M‖ where it is known already; it is used if nothing is rounded and no covariance asks for more.
    if lost is not None and dtype == dense.dtype and covariance is None:
        whole = _norm(dense)
        return Projection(matrix, lost / whole if whole > 0 else 0.0, None, tuple(objectives))
    rounded = matrix.to(dtype=dtype)
    difference = dense - rounded.to_dense().to(dense.dtype)
    lost, whole = _norm(difference), _norm(dense)
    relative = lost / whole if whole > 0 else 0.0
    output = None
    if covariance is not None:
        energy, missed = (float(((w @ covariance) * w.conj()).sum().real) for w in (dense, difference))
        output = math.sqrt(max(missed, 0.0) / energy) if energy > 0 else 0.0
    return Projection(rounded, relative, output, tuple(objectives))


def _norm(matrix: Tensor) -> float:
    """Frobenius norm, to more digits than float32 keeps in a sum of millions of squares."""
    rows = torch.linalg.vector_norm(matrix, dim=1).double()
    norm = float(torch.linalg.vector_norm(rows))
    if 1e-15 < norm < 1e15:
        return norm
    # Squares may have overflowed or vanished.
    scale = torch.linalg.vector_norm(matrix, torch.inf)
    scale = torch.where(scale > 0, scale, 1)
    return float(torch.linalg.vector_norm(matrix / scale).double() * scale.double())


def check_blocks(dense: Tensor, nblocks: int) -> None:
    """Refuse a number of blocks that a matrix (m, n) cannot have."""
    if not isinstance(nblocks, int) or isinstance(nblocks, bool) or not 1 <= nblocks <= min(dense.shape):
        raise ValueError(
            f"nblocks must be in 1 .. {min(dense.shape)} for dense {tuple(dense.shape)}; got nblocks={nblocks}"
        )


def padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Pad a matrix with zeros at the bottom and the right: (m, n) -> (rows, columns)."""
    if tensor.shape == (rows, columns):
        return tensor
    return F.pad(tensor, (0, columns - tensor.shape[1], 0, rows - tensor.shape[0]))


@checked
def project_diagonal(dense: Tensor) -> Projection[Diagonal]:
    """Keep the diagonal.

    Args:
        dense: (n, n).

    Returns:
        The nearest diagonal matrix.

    Example:
        >>> found = mw.structures.project_diagonal(torch.eye(3) * 5)
        >>> found.matrix.entries, found.relative_error
        (tensor([5., 5., 5.]), 0.0)
    """
    work, _ = prepare(dense, None)
    _check_square(work)
    return as_projection(Diagonal(work.diagonal().clone()), work, None, dense.dtype)


@checked
def project_circulant(dense: Tensor) -> Projection[Circulant]:
    """Average the wrapped diagonals.

    Args:
        dense: (n, n).

    Returns:
        The nearest circulant matrix.

    Example:
        >>> found = mw.structures.project_circulant(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
        >>> found.matrix.column
        tensor([2., 3.])
    """
    work, _ = prepare(dense, None)
    _check_square(work)
    n = work.shape[0]
    index = torch.arange(n, device=work.device)
    column = work.new_zeros(n).index_add_(0, ((index[:, None] - index) % n).flatten(), work.flatten()) / n
    return as_projection(Circulant(column), work, None, dense.dtype)


@checked
def project_toeplitz(dense: Tensor) -> Projection[Toeplitz]:
    """Average the diagonals.

    Args:
        dense: (m, n).

    Returns:
        The nearest Toeplitz matrix.

    Example:
        >>> found = mw.structures.project_toeplitz(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
        >>> found.matrix.to_dense()
        tensor([[2., 2.],
                [4., 2.]])
    """
    work, _ = prepare(dense, None)
    m, n = work.shape
    rows, columns = (torch.arange(size, device=work.device) for size in (m, n))
    diagonal = (rows[:, None] - columns + n - 1).flatten()
    counts = torch.bincount(diagonal, minlength=m + n - 1)
    means = work.new_zeros(m + n - 1).index_add_(0, diagonal, work.flatten()) / counts
    return as_projection(Toeplitz(means[n - 1 :], means[: n - 1].flip(0)), work, None, dense.dtype)


@checked
def project_low_rank(dense: Tensor, rank: int, *, input_covariance: Tensor | None = None) -> Projection[LowRank]:
    """Truncate the singular value decomposition, of W C^½ where the inputs' covariance C is known.

    Args:
        dense: (m, n).
        rank: From 1 to min(m, n).
        input_covariance: (n, n), E[x xᴴ] of the inputs.

    Returns:
        The nearest matrix of this rank, for the inputs or in Frobenius norm; optimal either way.

    Raises:
        ValueError: The rank is out of range.

    Example:
        >>> found = mw.structures.project_low_rank(torch.outer(torch.arange(3.0), torch.arange(4.0)), rank=1)
        >>> found.matrix.num_parameters, found.relative_error < 1e-5
        (7, True)
    """
    work, covariance = prepare(dense, input_covariance)
    if not 1 <= rank <= min(work.shape):
        raise ValueError(f"rank must be in 1 .. {min(work.shape)} for dense {tuple(work.shape)}; got rank={rank}")
    if covariance is None:
        left, right, lost = best_low_rank([work], rank)
    else:
        root, inverse = roots(covariance[None])
        left, right, lost = best_low_rank((work @ root).unbind(), rank)
        right = right @ inverse
    return as_projection(LowRank(left[0], right[0]), work, covariance, dense.dtype, lost=float(lost))


@checked
def project_block_diagonal(
    dense: Tensor, nblocks: int = 4, *, input_covariance: Tensor | None = None
) -> Projection[BlockDiagonal]:
    """Keep the diagonal blocks; with a covariance, let each stand in for the columns that are lost.

    Args:
        dense: (m, n); sizes that nblocks does not divide are padded.
        nblocks: Blocks.
        input_covariance: (n, n), E[x xᴴ] of the inputs.

    Returns:
        The nearest block-diagonal matrix, for the inputs or in Frobenius norm; optimal either way.

    Example:
        >>> found = mw.structures.project_block_diagonal(torch.ones(4, 4), nblocks=2)
        >>> found.matrix.weight.shape, round(found.relative_error, 4)
        (torch.Size([2, 2, 2]), 0.7071)
    """
    work, covariance = prepare(dense, input_covariance)
    check_blocks(work, nblocks)
    own = torch.arange(nblocks, device=work.device)[:, None]
    blocks = _project_blocks(work, covariance, own)
    return as_projection(BlockDiagonal(blocks[:, 0], (work.shape[0], work.shape[1])), work, covariance, dense.dtype)


@checked
def project_flat_butterfly(
    dense: Tensor, nblocks: int = 4, neighbours: int | None = None, *, input_covariance: Tensor | None = None
) -> Projection[FlatBlockButterfly]:
    """Keep the blocks of a flat butterfly; with a covariance, let them stand in for the columns that are lost.

    Args:
        dense: (m, n); sizes that nblocks does not divide are padded.
        nblocks: Block rows and columns, a power of two.
        neighbours: Blocks in each block row, at most (and by default) log2(nblocks) + 1.
        input_covariance: (n, n), E[x xᴴ] of the inputs.

    Returns:
        The nearest matrix of this pattern, for the inputs or in Frobenius norm; optimal either way.

    Raises:
        ValueError: nblocks is no power of two, or there are too many neighbours.

    Example:
        >>> found = mw.structures.project_flat_butterfly(torch.randn(32, 32), nblocks=8)
        >>> found.matrix.shape, 0 < found.relative_error < 1
        ((32, 32), True)
    """
    work, covariance = prepare(dense, input_covariance)
    check_blocks(work, nblocks)
    most = nblocks.bit_length()
    count = most if neighbours is None else neighbours
    if nblocks & (nblocks - 1) or not 1 <= count <= most:
        raise ValueError(
            f"nblocks must be a power of two and neighbours in 1 .. log2(nblocks) + 1; got nblocks={nblocks}, "
            f"neighbours={neighbours}"
        )
    blocks = _project_blocks(work, covariance, butterfly_neighbours(nblocks, count, work.device))
    return as_projection(FlatBlockButterfly(blocks, (work.shape[0], work.shape[1])), work, covariance, dense.dtype)


@checked
def project_pixelfly(
    dense: Tensor,
    nblocks: int = 4,
    rank: int = 1,
    neighbours: int | None = None,
    *,
    input_covariance: Tensor | None = None,
    rounds: int = 10,
) -> Projection[Sum]:
    """Fit a flat block butterfly plus a low-rank matrix by turns.

    Each half-step is optimal given the other part, so the error never grows; the pair need not be the best one.

    Args:
        dense: (m, n).
        nblocks: As for ``project_flat_butterfly``.
        rank: Of the low-rank part.
        neighbours: As for ``project_flat_butterfly``.
        input_covariance: (n, n), E[x xᴴ] of the inputs.
        rounds: How often each part is fitted.

    Returns:
        The sum of the two.

    Raises:
        ValueError: There is no round, or an argument does not suit a part.

    Example:
        >>> dense = torch.randn(32, 32)
        >>> butterfly = mw.structures.project_flat_butterfly(dense, nblocks=8)
        >>> mw.structures.project_pixelfly(dense, nblocks=8, rank=2).relative_error < butterfly.relative_error
        True
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got rounds={rounds}")
    work, covariance = prepare(dense, input_covariance)
    low_rank = torch.zeros_like(work)
    for _ in range(rounds):
        sparse = project_flat_butterfly(work - low_rank, nblocks, neighbours, input_covariance=covariance).matrix
        smooth = project_low_rank(work - sparse.to_dense(), rank, input_covariance=covariance).matrix
        low_rank = smooth.to_dense()
    return as_projection(Sum((sparse, smooth)), work, covariance, dense.dtype)


@checked
def project_chain(dense: Tensor, digits: Sequence[int]) -> Projection[Chain]:
    """Peel off one digit after another, each time with the best matrices of rank one.

    A chain is recovered exactly; of other matrices this gives a good chain, not the best one, which is hard to find.

    Args:
        dense: (n, n).
        digits: b_1, ..., b_p with product n, the most significant first.

    Returns:
        The chain.

    Raises:
        ValueError: The digits do not make n.

    Source:
        Zheng, Riccietti and Gribonval, Efficient identification of butterfly sparse matrix factorizations
        (arXiv 2110.01230): the hierarchical algorithm.

    Example:
        >>> found = mw.structures.project_chain(mw.monarch_hadamard(8).to_dense(), digits=[2, 2, 2])
        >>> found.matrix.num_parameters, found.relative_error < 1e-5
        (48, True)
    """
    work, _ = prepare(dense, None)
    _check_square(work)
    if not digits or min(digits) < 1 or math.prod(digits) != work.shape[0]:
        raise ValueError(f"digits must multiply to {work.shape[0]}; got {tuple(digits)}")
    return as_projection(Chain(tuple(_chain_factors(work[None], list(digits)))), work, None, dense.dtype)


def _chain_factors(matrices: Tensor, digits: list[int]) -> list[Tensor]:
    """The factors of (batch, n, n) matrices in the order of application."""
    # The last factor acts on the first digit, the others within each of its values: slice (c, i), rows (·, i) of
    # columns (c, ·), has rank one. Blocks are numbered by the digits after their own, the batch, the digits before
    # their own; as the batch of an inner level is (batch, first digit), that is Chain's order at every level.
    batch, first, rest = matrices.shape[0], digits[0], math.prod(digits[1:])
    if len(digits) == 1:
        return [matrices]
    slices = matrices.view(batch, first, rest, first, rest).permute(0, 3, 2, 1, 4).reshape(-1, first, rest)
    left, right, _ = best_low_rank(slices.unbind(), 1)
    last = left.view(batch, first, rest, first).permute(2, 0, 3, 1).reshape(-1, first, first)
    return [*_chain_factors(right.reshape(batch * first, rest, rest), digits[1:]), last]


def _project_blocks(work: Tensor, covariance: Tensor | None, columns: Tensor) -> Tensor:
    """The best (nblocks, count, q, p) where block row i may use the block columns columns[i], (nblocks, count)."""
    nblocks, count = columns.shape
    q, p = -(-work.shape[0] // nblocks), -(-work.shape[1] // nblocks)
    if covariance is None:
        table = padded(work, nblocks * q, nblocks * p).view(nblocks, q, nblocks, p).transpose(1, 2)
        return table[torch.arange(nblocks, device=work.device)[:, None], columns]
    n = work.shape[1]
    floor = EIGENVALUE_FLOOR * torch.linalg.matrix_norm(covariance, 2)
    # Padded inputs are always zero: the floor alone stands on their diagonal.
    full = padded(covariance, nblocks * p, nblocks * p) + floor * torch.eye(nblocks * p).to(covariance)
    seen = padded(work, nblocks * q, nblocks * p) @ full
    result = work.new_empty(nblocks, count, q, p)
    for row in range(nblocks):
        used = (columns[row, :, None] * p + torch.arange(p, device=work.device)).flatten()
        moments = seen[row * q : (row + 1) * q, used]
        solution = torch.linalg.solve(full[used][:, used], moments, left=False)
        solution[:, used >= n] = 0
        result[row] = solution.view(q, count, p).transpose(0, 1)
    return result


def _check_square(dense: Tensor) -> None:
    if dense.shape[0] != dense.shape[1]:
        raise ValueError(f"dense must be square; got shape {tuple(dense.shape)}")
