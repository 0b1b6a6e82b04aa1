"""Truncated singular value decompositions and matrix roots, over many small matrices at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from milkweed.ops._gemm import linear, prefers_onednn

T = TypeVar("T")

# Eigenvalues of a covariance below this share of the largest are raised to it: directions hardly ever seen in
# calibration must not decide the projection.
EIGENVALUE_FLOOR = 1e-6

_STRIPS = 4


def best_low_rank(matrices: Sequence[Tensor], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest matrices of a rank, the singular values shared evenly between the two factors.

    The Gram matrix of the shorter side gives the singular vectors two to three times as fast as a decomposition of the
    matrix itself. It loses the singular values below √eps of the largest, which matters only where nearly nothing is
    discarded; such matrices are decomposed again without it.

    Args:
        matrices: Of one shape (m, n), in float32, float64 or their complex kinds; views are not copied together.
        rank: From 1 to min(m, n).

    Returns:
        The factors (batch, m, rank) and (batch, rank, n), and ‖A − left @ right‖ of each, (batch,) in float64.
    """
    left, right, lost = zip(*in_parallel(lambda matrix: _best_low_rank(matrix, rank), matrices), strict=True)
    return torch.stack(left), torch.stack(right), torch.stack(lost)


def _best_low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    # The entries of the Gram matrix are squares, which would overflow above 1e19 in float32 and vanish below 1e-19.
    scale = matrix.abs().amax()
    scale = torch.where(scale > 0, scale, 1)
    wide = matrix.shape[0] < matrix.shape[1]
    tall = (matrix.mH if wide else matrix) / scale
    left, right = _tall_low_rank(tall, rank)
    precise = torch.promote_types(tall.dtype, torch.float64)
    lost = torch.linalg.vector_norm(tall - _product(left, right.mT), dtype=precise) * scale.double()
    left, right = (right.mH, left.mH) if wide else (left, right)
    return left * scale.sqrt(), right * scale.sqrt(), lost


def _tall_low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    vectors = torch.linalg.eigh(_lower_gram(matrix)).eigenvectors[:, -rank:].flip(1)
    scaled = _product(matrix, vectors.mT)
    values = torch.linalg.vector_norm(scaled, dim=0)
    total, kept = torch.linalg.vector_norm(matrix).square(), values.square().sum()
    if rank < matrix.shape[1] and total - kept > torch.finfo(matrix.dtype).eps ** 0.5 * total:
        root = values.sqrt()
        return scaled / root.clamp_min(torch.finfo(values.dtype).tiny), root[:, None] * vectors.mH
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


def _lower_gram(matrix: Tensor) -> Tensor:
    """The lower triangle of AᴴA, which is all that eigh reads, by strips: three eighths of a full product saved."""
    n = matrix.shape[1]
    if n < _STRIPS * 64:
        return matrix.mH @ matrix
    gram, columns = matrix.new_empty(n, n), matrix.mT.contiguous()
    step = -(-n // _STRIPS)
    for start in range(0, n, step):
        stop = min(start + step, n)
        gram[start:stop, :stop] = _product(columns[start:stop].conj(), columns[:stop])
    return gram


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A @ Bᵀ."""
    return linear(a.contiguous(), b.contiguous()) if prefers_onednn(a) else a @ b.mT


def in_parallel(function: Callable[[Tensor], T], matrices: Sequence[Tensor]) -> list[T]:
    """Decompose matrices, one per thread on a CPU: a decomposition gains little from threads of its own.

    Args:
        function: Of one matrix, without gradients.
        matrices: The matrices.

    Returns:
        The results in order.
    """
    threads = torch.get_num_threads()
    work = torch.no_grad()(function)
    if threads == 1 or len(matrices) == 1 or matrices[0].device.type != "cpu":
        return [work(matrix) for matrix in matrices]
    try:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            return list(pool.map(work, matrices))
    finally:
        torch.set_num_threads(threads)  # what threads yet to be started will take


def roots(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square roots and their inverses, with floored eigenvalues.

    Args:
        covariances: (batch, n, n), Hermitian.

    Returns:
        Two tensors of this shape.

    Raises:
        ValueError: One has a negative eigenvalue beyond rounding.
    """
    found = in_parallel(torch.linalg.eigh, covariances.unbind())
    values = torch.stack([each.eigenvalues for each in found])
    vectors = torch.stack([each.eigenvectors for each in found])
    if (values[:, 0] < -1e-3 * values.abs().max()).any():
        raise ValueError(
            f"input_covariance must be positive semidefinite, E[x x^H] over samples x; it has an eigenvalue near "
            f"{float(values.min()):.3g}"
        )
    # A block whose inputs are all zero takes the scale of the others.
    most = values.amax(-1, keepdim=True)
    most = torch.where(most > 0, most, values.max())
    values = values.clamp_min(EIGENVALUE_FLOOR * most)[:, None, :]
    return (vectors * values.sqrt()) @ vectors.mH, (vectors / values.sqrt()) @ vectors.mH
