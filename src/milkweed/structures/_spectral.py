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
# A share of the energy that a difference of energies gives to six digits in float32; below it, the difference of the
# matrices is taken.
_MUCH = 0.05


def best_low_rank(matrices: Sequence[Tensor], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest matrices of a rank: (batch, m, rank), (batch, rank, n), and the errors ‖A − left @ right‖."""
    # The singular values are shared evenly between the two factors. The Gram matrix of the shorter side gives the
    # singular vectors two to three times as fast as a decomposition of the matrix itself. It loses the singular values
    # below √eps of the largest, which matters only where nearly nothing is discarded; such matrices are decomposed
    # again without it. Views are not copied together; the errors (batch,) are float64.
    left, right, lost = zip(*in_parallel(lambda matrix: _best_low_rank(matrix, rank), matrices), strict=True)
    return torch.stack(left), torch.stack(right), torch.stack(lost)


def _best_low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    # The entries of the Gram matrix are squares, which would overflow above 1e19 in float32 and vanish below 1e-19.
    scale = matrix.abs().amax()
    scale = torch.where(scale > 0, scale, 1)
    wide = matrix.shape[0] < matrix.shape[1]
    left, right, lost = _tall_low_rank((matrix.mH if wide else matrix) / scale, rank)
    left, right = (right.mH, left.mH) if wide else (left, right)
    return left * scale.sqrt(), right * scale.sqrt(), lost * scale.double()


def _tall_low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    vectors = torch.linalg.eigh(_lower_gram(matrix)).eigenvectors[:, -rank:].flip(1)
    scaled = _product(matrix, vectors.mT)
    total, kept = _norm(matrix).square(), _norm(scaled).square()
    if rank < matrix.shape[1] and total - kept > _least_share(matrix.dtype) * total:
        values = torch.linalg.vector_norm(scaled, dim=0)
        root = values.sqrt()
        left, right = scaled / root.clamp_min(torch.finfo(values.dtype).tiny), root[:, None] * vectors.mH
        if total - kept > _MUCH * total:
            return left, right, (total - kept).sqrt()  # the part kept is orthogonal to the rest
    else:
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
        root = values[:rank].sqrt()
        left, right = u[:, :rank] * root, root[:, None] * vh[:rank]
    return left, right, _norm(matrix - _product(left, right.mT))


def _least_share(dtype: torch.dtype) -> float:
    """The discarded share of the energy down to which the Gram matrix gives the optimum to 1e-5."""
    eps = torch.finfo(dtype).eps
    return max(eps**0.5, 1e5 * eps)


def _norm(matrix: Tensor) -> Tensor:
    """In float64: a float32 sum of a million squares keeps five digits."""
    return torch.linalg.vector_norm(matrix, dtype=torch.promote_types(matrix.dtype, torch.float64))


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
    """Decompose matrices, one per thread on a CPU: a decomposition gains little from threads of its own."""
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
    """Symmetric square roots of covariances (batch, n, n) and their inverses, with floored eigenvalues."""
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
