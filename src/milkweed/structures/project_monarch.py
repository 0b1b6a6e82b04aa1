"""The nearest Monarch matrix: slice by slice, weighted by the inputs' covariance, refined by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.structures._spectral import EIGENVALUE_FLOOR, best_low_rank, roots
from milkweed.structures.monarch import Monarch, monarch_shapes, slice_ranks
from milkweed.structures.project import Projection, as_projection, padded, prepare


@overload
def project_monarch(
    dense: Tensor,
    nblocks: int | tuple[int, int] = 4,
    rank: int | None = None,
    *,
    input_covariance: Tensor | None = None,
    refine: int = 0,
) -> Projection[Monarch]: ...
@overload
def project_monarch(
    dense: Sequence[Tensor],
    nblocks: int | tuple[int, int] = 4,
    rank: int | None = None,
    *,
    input_covariance: Tensor | None = None,
    refine: int = 0,
) -> list[Projection[Monarch]]: ...
@checked
def project_monarch(
    dense: Tensor | Sequence[Tensor],
    nblocks: int | tuple[int, int] = 4,
    rank: int | None = None,
    *,
    input_covariance: Tensor | None = None,
    refine: int = 0,
) -> Projection[Monarch] | list[Projection[Monarch]]:
    """Find the nearest Monarch matrix, with the shapes of ``MonarchLinear``.

    The slices of a Monarch matrix are independent, so truncating the singular value decomposition of each is optimal in
    Frobenius norm. With the covariance C of the inputs each slice is weighted by the root of its own block of C; with
    ``refine`` the factors are then fitted to the whole of C by turns, each time by least squares.

    Args:
        dense: (m, n), real or complex, or several such matrices that read the same inputs. Half precision is projected
            in float32; sizes that nblocks does not divide are padded, which keeps optimality.
        nblocks: Blocks per factor, or (blocks of the right one, blocks of the left one).
        rank: Rank of each slice; by default as much as ``MonarchLinear`` has, min(in_block, out_block) / nblocks. For
            different numbers of blocks a whole number, as large as the narrower side allows.
        input_covariance: (n, n), E[x xᴴ] of the inputs, not centred.
        refine: Rounds of least squares; needs a covariance. The output error never grows.

    Returns:
        The projection, or a list of them; ``matrix`` has the dense one's shape and dtype.

    Raises:
        ValueError: A shape, the blocks, the rank or the covariance does not fit, or a number is not finite.
        TypeError: ``dense`` holds no floating-point or complex numbers, or a size is no integer.

    Source:
        Monarch (arXiv 2204.00595), algorithm 1 and theorem 1 (rank one, square), here for any shape and rank. The
        weighting by the covariance and the refinement go beyond the paper.

    Example:
        >>> found = mw.project_monarch(torch.randn(30, 50), nblocks=4)
        >>> found.matrix.shape, found.matrix.num_parameters < 30 * 50, 0 < found.relative_error < 1
        ((30, 50), True, True)
    """
    if not isinstance(dense, Tensor):
        if not isinstance(dense, list | tuple):
            raise TypeError(f"dense must be a tensor or a list of tensors; got {type(dense).__name__}")
        return [
            project_monarch(each, nblocks, rank, input_covariance=input_covariance, refine=refine) for each in dense
        ]
    if refine < 0 or (refine and input_covariance is None):
        raise ValueError(f"refine must be at least 0, and needs input_covariance above that; got refine={refine}")
    work, covariance = prepare(dense, input_covariance)
    m, n = work.shape
    right_shape, left_shape = monarch_shapes(n, m, nblocks, rank)
    right, left, lost = _by_slices(work, right_shape, left_shape, covariance)
    objectives: list[float] = []
    if refine and covariance is not None:
        (right, left), objectives = _Refinement(work, covariance, (right, left)).run(refine)
    return as_projection(Monarch(right, left, crop=(m, n)), work, covariance, dense.dtype, objectives, lost)


def _by_slices(
    work: Tensor, right_shape: tuple[int, int, int], left_shape: tuple[int, int, int], covariance: Tensor | None
) -> tuple[Tensor, Tensor, float | None]:
    """The best factors for every slice by itself, and the norm of what is lost."""
    # A slice is the rows (·, l) and the columns (k, ·) of the padded matrix. There are no factors where slices keep
    # different ranks.
    (k, q, p), (l, s, r) = right_shape, left_shape  # noqa: E741 - the paper's letter
    slices = padded(work, l * s, k * p).view(s, l, k, p).permute(2, 1, 0, 3)
    inverse = None
    if covariance is not None:
        whole = padded(covariance, k * p, k * p).view(k, p, k, p)
        root, inverse = roots(torch.stack([whole[i, :, i] for i in range(k)]))
        slices = (slices.reshape(k, l * s, p) @ root).view(k, l, s, p)  # batched over k: no root for each l
    most = int(slice_ranks(k, q, l).max())
    tall, wide, lost = best_low_rank([each for row in slices for each in row], most)
    tall, wide = tall.view(k, l, s, most), wide.view(k, l, most, p)
    if inverse is not None:
        wide = (wide.reshape(k, l * most, p) @ inverse).view(k, l, most, p)
    if q % l == 0:  # every slice has the same rank: the gathers below are permutations
        right = wide.transpose(1, 2).reshape(k, q, p)
        left = tall.permute(1, 2, 0, 3).reshape(l, s, r)
        return right, left, float(torch.linalg.vector_norm(lost))
    # Middle feature f = k q + q' leads to left block f mod l, at its input f // l; it takes the singular vector that
    # counts the features of block k before it with the same l.
    feature = torch.arange(k * q, device=work.device)
    block, target = feature // q, feature % l
    first = block * q + (target - block * q) % l
    order = (feature - first) // l
    right = wide[block, target, order].view(k, q, p)
    left = tall[block, target, :, order].view(r, l, s).permute(1, 2, 0)
    return right.contiguous(), left.contiguous(), None


class _Refinement:
    """Alternating least squares for tr((W − M) C (W − M)ᴴ), C floored so that every step has one solution.

    With the middle features z = R x (row f of R is the right factor's row f, zero outside its own block), the outputs
    of left block l are left[l] times the features f ≡ l. For fixed R that is a regression of W x on z for every l. For
    a fixed left factor the rows of R that lead from block k to l are a regression on x in block k of what the other
    blocks leave over.
    """

    def __init__(self, work: Tensor, covariance: Tensor, factors: tuple[Tensor, Tensor]) -> None:
        self.right, self.left = factors
        k, q, p = self.right.shape
        l, s, r = self.left.shape  # noqa: E741 - the paper's letter
        floor = EIGENVALUE_FLOOR * torch.linalg.matrix_norm(covariance, 2)
        self.covariance = padded(covariance, k * p, k * p) + floor * torch.eye(k * p).to(covariance)
        weight = padded(work, l * s, k * p).view(s, l, k * p).transpose(0, 1)
        self.moments = weight @ self.covariance  # (l, s, n): E[W x xᴴ] by left block
        self.energy = (self.moments * weight.conj()).sum().real
        # features[l] lists the middle features of left block l in the order of its inputs.
        self.features = torch.arange(k * q, device=work.device).view(r, l).T

    def run(self, rounds: int) -> tuple[tuple[Tensor, Tensor], list[float]]:
        targets, gram = self._seen_through_right()
        best, objectives = (self.right, self.left), [self._objective(targets, gram)]
        for half_step in range(2 * rounds):
            if half_step % 2 == 0:
                # A feature of no use (an input that is always zero) makes the system singular.
                self.left = targets @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-12)
            else:
                self._fit_right()
                targets, gram = self._seen_through_right()
            objective = self._objective(targets, gram)
            if not objective < objectives[-1]:
                break  # at the limit of precision: nothing is left to gain
            best = self.right, self.left
            objectives.append(objective)
        return best, objectives

    def _seen_through_right(self) -> tuple[Tensor, Tensor]:
        """E[W x zᴴ] (l, s, r) and E[z zᴴ] (l, r, r) over the features z of each left block."""
        # z = R x gives E[W x zᴴ] = E[W x xᴴ] Rᴴ and E[z zᴴ] = R C Rᴴ. A row of R is zero outside its own block k, so
        # both products run over p columns; left block l then picks its own features.
        k, q, p = self.right.shape
        rows = torch.einsum("kqp,kpn->kqn", self.right, self.covariance.view(k, p, k * p))
        gram = torch.einsum("fkp,kqp->fkq", rows.view(k * q, k, p), self.right.conj()).reshape(k * q, k * q)
        targets = torch.einsum("lskp,kqp->lskq", self.moments.unflatten(-1, (k, p)), self.right.conj()).flatten(2)
        index = self.features[:, None, :].expand(-1, targets.shape[1], -1)
        return targets.gather(2, index), gram[self.features[:, :, None], self.features[:, None, :]]

    def _objective(self, targets: Tensor, gram: Tensor) -> float:
        """The squared output error relative to the output's energy, for the floored covariance."""
        explained = 2 * (targets * self.left.conj()).sum() - ((self.left @ gram) * self.left.conj()).sum()
        return float(1 - explained.real / self.energy)

    def _fit_right(self) -> None:
        # Block by block, each with the newest rows of the others (Gauss-Seidel). For left block l, L its columns of the
        # features that come from block k, and T = E[(W x - what the other features give) x_kᴴ]: min ‖(T C_kk⁻¹ - L R)
        # C_kk^½‖ has the solution R = L⁺ T C_kk⁻¹, one for each l, which share the solve with C_kk.
        k, q, p = self.right.shape
        covariance = self.covariance.view(k, p, k, p)
        right = self.right.reshape(k * q, p).clone()
        for block in range(k):
            own = self.features // q == block
            passed = (right.view(k, q, p) @ covariance[:, :, block]).flatten(0, 1)
            left_over = self.moments[:, :, block * p : (block + 1) * p]
            fitted = []
            for index, features in enumerate(self.features):
                mine, others = own[index], ~own[index]
                rest = left_over[index] - self.left[index][:, others] @ passed[features[others]]
                fitted.append(torch.linalg.pinv(self.left[index][:, mine], rtol=1e-12) @ rest)
            rows = torch.linalg.solve(covariance[block, :, block], torch.cat(fitted), left=False)
            right[self.features[own]] = rows
        self.right = right.view(k, q, p)
