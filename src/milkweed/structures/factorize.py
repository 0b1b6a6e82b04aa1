"""Recovering the factors of a product of two Monarch matrices from its entries."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.structures.base import Product, check_numbers
from milkweed.structures.monarch import Monarch

# Random combinations whose eigenvectors are tried; each is judged by how well it diagonalises the others.
_DRAWS = 6
# Eigenvalues closer than this, relative to the largest, may count as one whose eigenvectors can be chosen freely.
_CLUSTERS = (0.0, 1e-10, 1e-6, 1e-3)
# A complex basis must diagonalise this much better than a real one to be taken for a real matrix.
_PREFER_REAL = 3.0
# Steps towards the eigenvectors of all combinations.
_TURNS = 10
# Eigenvectors with a larger condition number count as linearly dependent.
_DEPENDENT = 1e12
# Refinement ends when a round removes less than this part of the error.
_LEAST_GAIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Factorization:
    """A dense matrix as M₁ M₂*.

    Args:
        factors: M₁ and M₂.
        matrix: M₁ M₂* as one structure.
        relative_error: Frobenius norm of what the matrix misses, over that of the dense matrix.

    Example:
        >>> m = mw.Monarch(torch.randn(4, 4, 4), torch.randn(4, 4, 4))
        >>> found = mw.factorize_monarch_product((m @ m.H).to_dense(), block_size=4)
        >>> found.matrix.shape, found.relative_error < 1e-3
        ((16, 16), True)
    """

    factors: tuple[Monarch, Monarch]
    matrix: Product
    relative_error: float


@checked
def factorize_monarch_product(dense: Tensor, block_size: int, *, refine: int = 200) -> Factorization:
    """Recover M₁ and M₂ from the entries of M₁ M₂*.

    With b = ``block_size`` and m = n / b, both factors have a ``left`` of m blocks b × b and a ``right`` of b blocks
    m × m; M₂'s ``right`` is the identity, as only R₁ R₂* matters. Among the equivalent answers it gives the one whose
    ``left`` blocks have columns of length 1. Everything is computed in double precision, then rounded to the dtype of
    the input. A real matrix gets real factors if the eigenvalues met on the way are real, else complex ones.

    Exact products are recovered to rounding errors as far as their blocks are well conditioned. Other matrices, such
    as a product with noise, get a fit that alternating least squares has improved, which may be a local minimum once
    the noise nears the smallest singular values of the blocks; how good it is, ``relative_error`` says. No random
    state is read or changed, and gradients do not pass.

    Args:
        dense: (n, n), floating point or complex.
        block_size: b, a divisor of n.
        refine: Rounds of alternating least squares over M₁'s left blocks, R₁ and M₂'s left blocks at most; they end
            when the error stops falling. None of their steps increases it; 0 leaves the first fit as it is.

    Returns:
        The factors, their product and its error.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``dense`` is not square or not finite, ``block_size`` does not divide n, ``refine`` is negative;
            or too many blocks are singular, or the blocks share no basis of eigenvectors, so that there is no start.

    Source:
        Monarch (arXiv 2204.00595), section 3.3 and algorithm 2. Differs: the blocks that get inverted are chosen by
        their condition instead of being the first row and column, all of the products F(i, j) are diagonalised at
        once, repeated eigenvalues are allowed, and there is a refinement.

    Example:
        >>> F = mw.Monarch(*torch.randn(2, 4, 4, 4)) @ mw.Monarch(*torch.randn(2, 4, 4, 4)).H
        >>> found = mw.factorize_monarch_product(F.to_dense(), block_size=4)
        >>> len(found.factors), found.relative_error < 1e-3
        (2, True)
    """
    _check(dense, block_size, refine)
    n, b = dense.shape[0], block_size
    m = n // b
    precise = dense.detach().to(torch.complex128 if dense.is_complex() else torch.float64)
    # Whatever its scale, the squares of the entries must neither overflow nor vanish.
    scale = precise.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    # Entry (s m + i, t m + j) is entry (s, t) of block (i, j): here (i, s, j, t).
    blocks = (precise / scale).reshape(b, m, b, m).permute(1, 0, 3, 2).contiguous()
    # Coarser than single precision, rounding is noise to be refined away rather than a lack of rank.
    limit = 1 / min(torch.finfo(dense.dtype).eps, torch.finfo(torch.float32).eps)
    fit = _refined(blocks, _start(blocks, limit), refine)
    return _result(fit, blocks, scale, dense.dtype)


class _Fit(NamedTuple):
    """Blocks A_i diag(D_ij) C_j and what they miss.

    The fields are ``a`` (m, b, b), ``d`` (m, m, b), ``c`` (m, b, b) and ``residual`` (m, b, m, b), the latter in the
    order (i, s, j, t).
    """

    a: Tensor
    d: Tensor
    c: Tensor
    residual: Tensor

    def transposed(self) -> _Fit:
        """The transposed blocks, C_jᵀ diag(D_ij) A_iᵀ, in which A and C have changed places."""
        residual = self.residual.permute(2, 3, 0, 1).contiguous()
        return _Fit(self.c.mT, self.d.transpose(0, 1), self.a.mT, residual)


def _check(dense: Tensor, block_size: int, refine: int) -> None:
    check_numbers("dense", dense, 2)
    n, columns = dense.shape
    if n != columns:
        raise ValueError(f"dense must be square; got shape {tuple(dense.shape)}")
    for name, value in (("block_size", block_size), ("refine", refine)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer; got {value!r}")
    if refine < 0:
        raise ValueError(f"refine must be 0 or more rounds; got {refine}")
    if block_size < 1 or n % block_size:
        near = min((b for b in range(1, n + 1) if n % b == 0), key=lambda b: abs(b - block_size))
        raise ValueError(f"block_size must divide n = {n}; got {block_size}, the nearest divisor is {near}")
    if not dense.isfinite().all():
        raise ValueError(f"dense must be finite; got {int((~dense.isfinite()).sum())} entries that are not")


# ---------------------------------------------------------------------- the start


def _start(blocks: Tensor, limit: float) -> _Fit:
    """Find a first fit to blocks (m, b, m, b) by linear algebra; it is complex if a real matrix needs that."""
    m, b = blocks.shape[:2]
    if m == 1 or b == 1:  # every matrix is such a product: of itself and identities, or diagonal in every block
        ones = torch.eye(b, dtype=blocks.dtype, device=blocks.device).expand(m, b, b)
        a, d = (blocks.squeeze(2), torch.ones_like(blocks[:, 0, :, :])) if m == 1 else (ones, blocks.squeeze(1))
        return _Fit(a, d, ones, torch.zeros_like(blocks))
    a, c = _in_common_basis(blocks, limit)
    # All F(i, j) = A_i⁻¹ M_ij C_j⁻¹ are diagonal in the one basis that is still missing.
    f = torch.linalg.solve(a, blocks.flatten(2)).unflatten(2, (m, b)).permute(0, 2, 1, 3)
    f = torch.linalg.solve(c, f, left=False)
    # What an error in M_ij can grow to in F(i, j) is its weight, so that the worst of them do not drown the others.
    growth = torch.linalg.matrix_norm(torch.linalg.inv(a))[:, None] * torch.linalg.matrix_norm(torch.linalg.inv(c))
    basis = _joint_eigenvectors((f / growth[..., None, None]).flatten(0, 1))
    a, c, f = a.to(basis.dtype) @ basis, torch.linalg.solve(basis, c.to(basis.dtype)), f.to(basis.dtype)
    d = (torch.linalg.inv(basis) @ f @ basis).diagonal(dim1=-2, dim2=-1)
    return _Fit(a, d, c, blocks - _multiply(a, d, c))


def _in_common_basis(blocks: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Find A_i and C_j up to diagonal matrices and one common basis: A_i V and V⁻¹ C_j, of Frobenius norm √b."""
    # One C_j is the basis. From M_ij = A_i D_ij C_j follow other factors, one invertible block each; the blocks are
    # chosen so that the product of condition numbers on the way to every factor is as small as it can be. A block whose
    # condition number exceeds ``limit`` counts as singular.
    m, b = blocks.shape[:2]
    square = blocks.permute(0, 2, 1, 3)
    values = torch.linalg.svdvals(square).cpu()
    cost = torch.log(values[..., 0] / values[..., -1].clamp_min(torch.finfo(values.dtype).tiny)).nan_to_num(math.inf)
    cost = cost.masked_fill(values[..., 0] == 0, math.inf)
    root, path = _cheapest_paths(torch.where(cost < math.log(limit), cost, math.inf))
    if len(path) < 2 * m - 1:
        worst = divmod(int(cost.argmax()), m)
        raise ValueError(
            f"dense has too many singular blocks for block_size {b}: those with a condition number below {limit:.1e} "
            f"do not connect all {m} rows and columns of blocks; block {worst} (entries dense[{worst[0]}::{m}, "
            f"{worst[1]}::{m}]) has {cost[worst].exp():.1e}; try another block_size"
        )
    a, c = torch.empty_like(square[0]), torch.empty_like(square[0])
    c[root] = torch.eye(b, dtype=blocks.dtype, device=blocks.device)
    for node, parent in path:
        if node < m:
            found, side = torch.linalg.solve(c[parent - m], square[node, parent - m], left=False), a
        else:
            found, side = torch.linalg.solve(a[parent], square[parent, node - m]), c
        side[node % m] = found * (math.sqrt(b) / torch.linalg.matrix_norm(found))
    return a, c


def _cheapest_paths(cost: Tensor) -> tuple[int, list[tuple[int, int]]]:
    """Find the cheapest path from one column to every row and column (Dijkstra), over entries of a matrix (m, m)."""
    # Entries are at least 0; an infinite one is no way. It gives the column where all paths begin, and in the order of
    # their distance the nodes with the node before each: rows are 0 to m - 1, columns m to 2m - 1. Nodes that cannot be
    # reached are missing.
    m = cost.shape[0]
    root = int(cost.sum(0).argmin()) if cost.sum(0).isfinite().any() else int(cost.isfinite().sum(0).argmax())
    distance = torch.full((2 * m,), math.inf, dtype=cost.dtype)
    before = torch.zeros(2 * m, dtype=torch.int64)
    waiting = torch.zeros(2 * m, dtype=cost.dtype)  # infinite once a node is done
    distance[m + root] = 0
    path: list[tuple[int, int]] = []
    for _ in range(2 * m):
        node = int((distance + waiting).argmin())
        if not distance[node].isfinite() or waiting[node]:
            break
        waiting[node] = math.inf
        if node != m + root:
            path.append((node, int(before[node])))
        ways, side = (cost[node], slice(m, None)) if node < m else (cost[:, node - m], slice(0, m))
        shorter = distance[node] + ways < distance[side]
        distance[side] = torch.where(shorter, distance[node] + ways, distance[side])
        before[side] = torch.where(shorter, node, before[side])
    return root, path


def _joint_eigenvectors(f: Tensor) -> Tensor:
    """Find the basis (b, b), real if possible, in which matrices (k, b, b), all equally reliable, become diagonal."""
    # A random combination of the matrices has distinct eigenvalues wherever any of them has, so its eigenvectors are
    # the shared ones; of several draws and groupings the basis counts that makes all of the draws most nearly diagonal.
    # The generator is the function's own: the same matrix gets the same factors.
    weights = torch.randn(_DRAWS, len(f), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = torch.einsum("tk,kxy->txy", weights.to(f), f)
    best, least = None, math.inf
    for basis in (basis for draw in draws for basis in _eigenvectors(draw)):
        real = basis.is_complex() <= f.is_complex()
        # Differences at the level of rounding errors decide nothing.
        score = max(_off_diagonal(draws, basis), 1e-11) * (1 if real else _PREFER_REAL)
        if score < least:
            best, least = basis, score
    if best is None:
        raise ValueError(
            "dense is no product M₁ M₂* of invertible blocks: the eigenvectors that its blocks should share are "
            f"linearly dependent (condition number above {_DEPENDENT:.0e}); try another block_size"
        )
    return _polished(f, best)


def _polished(f: Tensor, basis: Tensor) -> Tensor:
    """Turn a basis (b, b) towards the one in which all matrices (k, b, b) are diagonal; it gets no worse."""
    # To first order V (I + E) removes the entry (k, l) of V⁻¹ F V if E_kl (λ_l - λ_k) is that entry; over all F this is
    # one least-squares problem for each pair.
    best, least, f = basis, _off_diagonal(f, basis), f.to(basis.dtype)
    for _ in range(_TURNS):
        turned = torch.linalg.solve(basis, f @ basis)
        values = turned.diagonal(dim1=-2, dim2=-1)
        gaps = values[:, None, :] - values[:, :, None]
        size = gaps.abs().square().sum(0)
        # Where all F have equal eigenvalues the pair is diagonal already, and the quotient of two rounding errors.
        step = torch.where(size > 1e-12 * size.max(), (turned * gaps.conj()).sum(0) / size, 0)
        basis = basis + basis @ (step * (0.5 / step.abs().max().clamp_min(0.5)))
        basis = basis / torch.linalg.vector_norm(basis, dim=0)
        error = _off_diagonal(f, basis)
        best, least = (basis, error) if error < least else (best, least)
        if not step.abs().max() > 1e-12:
            break
    return best


def _eigenvectors(matrix: Tensor) -> list[Tensor]:
    """Find eigenvector bases (b, b) of one matrix, with every idea of which of its eigenvalues are equal."""
    # For equal eigenvalues any basis of their space will do. Bases are real where a real matrix has them.
    values, vectors = torch.linalg.eig(matrix)
    found: list[Tensor] = []
    counts: set[int] = set()
    for tolerance in _CLUSTERS:
        near = (values[:, None] - values).abs() <= tolerance * values.abs().max()
        # Squared until it is transitive: what is near to near values counts as one with them.
        for _ in range(len(values).bit_length()):
            near = (near.double() @ near.double()) > 0
        members = near.unique(dim=0)
        if len(members) in counts:
            continue
        counts.add(len(members))
        basis = torch.cat([_space(matrix, values[k], vectors[:, k]) for k in members], 1)
        found.append(basis.real if not matrix.is_complex() and (basis.imag == 0).all() else basis)
    return found


def _space(matrix: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Find a basis of the space that belongs to eigenvalues that count as equal."""
    if len(values) == 1:
        return vectors
    # Eigenvectors of one eigenvalue are whatever rounding errors make of them; what the matrix minus it maps
    # to almost nothing is well determined.
    center = values.mean()
    real = not matrix.is_complex() and center.imag.abs() <= (values - center).abs().max()
    shift = (center.real if real else center) * torch.eye(len(matrix), device=matrix.device)
    return torch.linalg.svd(matrix - shift).Vh[-len(values) :].mH.to(vectors.dtype)


def _off_diagonal(matrices: Tensor, basis: Tensor) -> float:
    """The part of matrices (t, b, b) that a basis does not make diagonal, relative to all; infinite for no basis."""
    if not basis.isfinite().all() or torch.linalg.cond(basis) > _DEPENDENT:
        return math.inf
    turned = torch.linalg.solve(basis, matrices.to(basis.dtype) @ basis)
    diagonal = torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))
    return float((torch.linalg.norm(turned - diagonal) / torch.linalg.norm(turned)).nan_to_num(math.inf))


# ---------------------------------------------------------------------- least squares


def _multiply(a: Tensor, d: Tensor, c: Tensor) -> Tensor:
    """The blocks A_i diag(D_ij) C_j: (m, b, b), (m, m, b), (m, b, b) to (m, b, m, b)."""
    return (a @ _scaled_rows(d, c)).unflatten(2, c.shape[:1] + c.shape[2:])


def _scaled_rows(d: Tensor, c: Tensor) -> Tensor:
    """All diag(D_ij) C_j side by side for every i: (m, b, m b)."""
    return (d.transpose(1, 2).unsqueeze(-1) * c.transpose(0, 1)).flatten(2)


def _refined(blocks: Tensor, fit: _Fit, rounds: int) -> _Fit:
    """Improve all factors in turn until that no longer helps; the fit gets no worse."""
    # Alternating steps creep along narrow valleys, so after every round the way since the last one is gone on, further
    # each time that lowers the error.
    stride, error = 1.0, float(torch.linalg.norm(fit.residual))
    rounding = 4 * torch.finfo(blocks.dtype).eps * float(torch.linalg.norm(blocks))
    for _ in range(rounds if error > rounding else 0):
        start, before = fit, error
        fit = _better_a(_better_d(fit))
        fit = _better_a(fit.transposed()).transposed()
        further = _further(blocks, start, fit, stride)
        error, beyond = (float(torch.linalg.norm(one.residual)) for one in (fit, further))
        stride *= 2 if beyond < error else 0.5
        fit, error = (further, beyond) if beyond < error else (fit, error)
        if error <= rounding or error >= (1 - _LEAST_GAIN) * before:
            break
    return fit


def _further(blocks: Tensor, start: _Fit, end: _Fit, stride: float) -> _Fit:
    """The fit beyond the end of a step."""
    a, d, c = (y + stride * (y - x) for x, y in zip(start[:3], end[:3], strict=True))
    return _Fit(a, d, c, blocks - _multiply(a, d, c))


def _better_a(fit: _Fit) -> _Fit:
    """Solve for all A_i with the rest fixed: one least-squares problem each."""
    # With X_i = [D_i1 C_1, ..., D_im C_m] the correction S of A_i minimises ‖R_i - S X_i‖, so S X Xᴴ = R Xᴴ. Each i
    # decides for itself whether its step is taken: none may make the error larger.
    x, residual = _scaled_rows(fit.d, fit.c), fit.residual.flatten(2)
    step = _normal_equations(x @ x.mH, x @ residual.mH).mH
    better = residual - step @ x
    gain = better.abs().square().sum((1, 2)) < residual.abs().square().sum((1, 2))
    a = torch.where(gain[:, None, None], fit.a + step, fit.a)
    residual = torch.where(gain[:, None, None], better, residual)
    return _unit_columns(fit._replace(a=a, residual=residual.view_as(fit.residual)))


def _better_d(fit: _Fit) -> _Fit:
    """Solve for all D_ij with the rest fixed: one least-squares problem with b unknowns each."""
    # min over δ of ‖R - A diag(δ) C‖: the Gram matrix is (AᴴA) ∘ (C Cᴴ)ᵀ, and the right side the diagonal of Aᴴ R Cᴴ.
    a, d, c, residual = fit
    gram = (a.mH @ a)[:, None] * (c @ c.mH).conj()
    right = torch.einsum("ikjt,jkt->ijk", (a.mH @ residual.flatten(2)).view_as(residual), c.conj())
    step = _normal_equations(gram, right.unsqueeze(-1)).squeeze(-1)
    better = residual - _multiply(a, step, c)
    gain = better.abs().square().sum((1, 3)) < residual.abs().square().sum((1, 3))
    residual = torch.where(gain[:, None, :, None], better, residual)
    return fit._replace(d=torch.where(gain[:, :, None], d + step, d), residual=residual)


def _normal_equations(gram: Tensor, right: Tensor) -> Tensor:
    """The x with G x = y for Hermitian, positive semidefinite G (..., b, b); zero where there is none."""
    # What is solved for is a correction to be repeated, so that neither the squared condition number nor the small
    # multiple of the identity that keeps G definite spoils digits of the result.
    mean = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    ridge = 16 * torch.finfo(gram.dtype).eps * mean[..., None].expand(gram.shape[:-1])
    factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge))
    return torch.where((failed == 0)[..., None, None], torch.cholesky_solve(right, factor), 0).nan_to_num(0)


def _unit_columns(fit: _Fit) -> _Fit:
    """Scale the columns of A to length 1, and D inversely: the product is the same."""
    norms = torch.linalg.vector_norm(fit.a, dim=1)
    norms = torch.where(norms > 0, norms, 1)
    return fit._replace(a=fit.a / norms[:, None], d=fit.d * norms[:, None])


# ---------------------------------------------------------------------- the result


def _result(fit: _Fit, blocks: Tensor, scale: Tensor, dtype: torch.dtype) -> Factorization:
    fit = _unit_columns(_unit_columns(fit).transposed()).transposed()
    if fit.a.is_complex():
        dtype = torch.promote_types(dtype, torch.complex64)
    a, d, c = fit.a.to(dtype), (fit.d * scale).to(dtype), fit.c.to(dtype)
    ones = torch.eye(len(a), dtype=dtype, device=a.device).expand(a.shape[1], -1, -1)
    factors = Monarch(d.permute(2, 0, 1).contiguous(), a), Monarch(ones.contiguous(), c.mH.contiguous())
    # Of the factors as they are returned, with what rounding them to the input's dtype costs.
    a, d, c = a.to(fit.a.dtype), d.to(fit.a.dtype) / scale, c.to(fit.a.dtype)
    size = torch.linalg.norm(blocks)
    error = torch.linalg.norm(blocks - _multiply(a, d, c)) / torch.where(size > 0, size, 1)
    return Factorization(factors, factors[0] @ factors[1].H, float(error))
