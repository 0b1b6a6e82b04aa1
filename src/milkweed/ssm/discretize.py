"""From continuous time to steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import check_kind, check_pairs, check_real, checked, got, is_kind, plain
from milkweed._suggest import unknown
from milkweed.ops import _linalg, pairs

DISCRETIZATIONS = ("bilinear", "zoh")


@checked(but=("dt",))
def discretize(A: Tensor, B: Tensor, dt: Tensor | float, method: str = "zoh") -> tuple[Tensor, Tensor]:
    """Discretise x' = A x + B u: x_t = Ā x_{t-1} + B̄ u_t.

    Args:
        A: (..., N, N), real or complex; it may be singular.
        B: (..., N), one dimension fewer than A, or (..., N, M), as many.
        dt: The step: a number, or (...) which is broadcast with the leading dimensions of A and B.
        method: ``"zoh"``, exact for inputs constant over each step, or ``"bilinear"``, (I - dt A/2)⁻¹(I + dt A/2) and
            (I - dt A/2)⁻¹ dt B.

    Returns:
        Ā (..., N, N) and B̄ (..., N) or (..., N, M), of the dtype of A.

    Raises:
        ValueError: The method is unknown, a shape does not fit, or ``dt`` is not positive and finite.
        TypeError: A or B holds no floating-point or complex numbers, or ``dt`` is complex.

    Source:
        S4 (arXiv 2111.00396), equation 3; ``"zoh"`` through the exponential of [[A, B], [0, 0]] dt, so that A is never
        inverted.

    Example:
        >>> A, B = torch.tensor([[-1.0]]), torch.tensor([1.0])
        >>> mw.ssm.discretize(A, B, dt=math.log(2))
        (tensor([[0.5000]]), tensor([0.5000]))
    """
    if method not in DISCRETIZATIONS:
        raise ValueError(unknown("method", method, DISCRETIZATIONS))
    for name, tensor in (("A", A), ("B", B)):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise TypeError(f"{name} must be floating point or complex; got {tensor.dtype}; use {name}.double()")
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must be (..., N, N); got shape {tuple(A.shape)}")
    vector = B.ndim == A.ndim - 1
    columns = B[..., None] if vector else B
    if columns.ndim != A.ndim or columns.shape[-2] != A.shape[-1]:
        raise ValueError(
            f"B must be (..., N) or (..., N, M) with A's leading dimensions and N={A.shape[-1]}; "
            f"got shape {tuple(B.shape)} for A of shape {tuple(A.shape)}"
        )
    dt = dt if isinstance(dt, Tensor) else plain(dt)
    _check_step(dt)
    # The exponential and the solver of half precision are wrong or missing.
    wide = torch.promote_types(A.real.dtype, torch.float32)
    step = torch.as_tensor(dt, dtype=wide, device=A.device)[..., None, None]
    lead = torch.broadcast_shapes(A.shape[:-2], columns.shape[:-2], step.shape[:-2])
    dt_a, dt_b = (step * A).expand(*lead, -1, -1), (step * columns).expand(*lead, -1, -1)
    a_bar, b_bar = _dense_zoh(dt_a, dt_b) if method == "zoh" else _dense_bilinear(dt_a, dt_b)
    if isinstance(dt, float | int) and not torch.compiler.is_compiling():
        _check_finite(dt, (A, columns), (a_bar, b_bar))
    a_bar, b_bar = a_bar.to(A.dtype), b_bar.to(A.dtype)
    return a_bar, b_bar[..., 0] if vector else b_bar


def _check_finite(dt: float, given: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> None:
    """Refuse a step over which the state grows beyond all numbers."""
    if given[0].is_meta or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    if not all(bool(each.isfinite().all()) for each in found) and all(bool(each.isfinite().all()) for each in given):
        raise ValueError(f"dt={dt:g} is too long a step: the state overflows within it; use a smaller dt")


def _check_step(dt: Tensor | float) -> None:
    if not isinstance(dt, Tensor) and not is_kind(dt, float):
        raise TypeError(f"dt must be a number or a tensor; got {got(dt)}")
    if isinstance(dt, Tensor):
        if dt.is_complex() or dt.dtype == torch.bool:
            raise TypeError(f"dt must be real; got {dt.dtype}")
        if torch.compiler.is_compiling() or dt.is_meta or dt.numel() == 0:
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # inside vmap and the like values cannot be looked at
    low, high = (float(dt.detach().min()), float(dt.detach().max())) if isinstance(dt, Tensor) else (dt, dt)
    if not (low > 0 and high < math.inf):
        raise ValueError(f"dt must be above 0 and finite; got {dt if low == high else f'{low:g} .. {high:g}'}")


def _dense_zoh(dt_a: Tensor, dt_b: Tensor) -> tuple[Tensor, Tensor]:
    size, inputs = dt_b.shape[-2:]
    augmented = F.pad(torch.cat([dt_a, dt_b], -1), (0, 0, 0, inputs))
    flow = _linalg.matrix_exp(augmented)[..., :size, :]
    return flow[..., :size], flow[..., size:]


def _dense_bilinear(dt_a: Tensor, dt_b: Tensor) -> tuple[Tensor, Tensor]:
    size = dt_a.shape[-1]
    eye = torch.eye(size, dtype=dt_a.dtype, device=dt_a.device)
    solved = torch.linalg.solve(eye - dt_a / 2, torch.cat([eye + dt_a / 2, dt_b], -1))
    return solved[..., :size], solved[..., size:]


def discretize_dplr(A: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Discretise z' = (A - Σ_r p_r · 2 Re(p_r* ·)) z + B u by the bilinear rule, without solving for N unknowns.

    In the real coordinates [Re z, Im z] the matrix is rot(A) - 2 W Wᵀ, with W the columns [Re p_r, Im p_r]. With
    D = I - dt/2 rot(A), which multiplies each mode by a complex number, the Woodbury identity gives

        (D + dt W Wᵀ)⁻¹ = D⁻¹ - dt D⁻¹ W (I + dt Wᵀ D⁻¹ W)⁻¹ Wᵀ D⁻¹

    and only a matrix of the rank's size is solved for.

    Args:
        A: (..., N/2, 2) real pairs, with real part at most 0; then every factor above is bounded.
        P: (rank, ..., N/2, 2) real pairs.
        B: (..., N/2, 2) real pairs.
        dt: (...), above 0.

    Returns:
        Ā (..., N, N) and B̄ (..., N), real.

    Raises:
        ValueError: A shape does not fit.

    Source:
        S4 (arXiv 2111.00396), appendix C.2, whose Woodbury correction is in complex arithmetic for a rank of one.

    Example:
        >>> A, P, B = (torch.view_as_real(x) for x in mw.ssm.nplr("legs", 8)[:3])
        >>> a, b = mw.ssm.discretize_dplr(A, P, B, torch.tensor(0.01))
        >>> a.shape, b.shape, bool(torch.linalg.eigvals(a).abs().max() < 1)
        (torch.Size([8, 8]), torch.Size([8]), True)
    """
    check_pairs(A=A, P=P, B=B)
    check_real(dt=dt)
    if dt.shape != A.shape[:-2] and dt.ndim:
        raise ValueError(f"dt must be (...) as A (..., N/2, 2); got {tuple(dt.shape)} and {tuple(A.shape)}")
    inverse = pairs.reciprocal(_one_minus(dt[..., None, None] / 2 * A))
    columns = pairs.multiply(inverse, P).movedim(0, -1)  # D⁻¹ W as pairs, (..., N/2, 2, rank)
    conjugate = torch.stack([inverse[..., 0], -inverse[..., 1]], -1)
    rows = pairs.multiply(conjugate, P).movedim(0, -1)
    columns, rows, W = (_real_coordinates(x) for x in (columns, rows, P.movedim(0, -1)))
    step = dt[..., None, None]
    small = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device) + step * (W.mT @ columns)
    corrections = _linalg.solve(small, rows.mT) * step  # (..., rank, N)
    forced = _real_coordinates(pairs.multiply(inverse, B)[..., None])
    forced = forced - columns @ (corrections @ _real_coordinates(B[..., None]))
    # 2 (I - dt/2 A)⁻¹ - I
    a_bar = pairs.rotation(-_one_minus(2 * inverse)) - 2 * columns @ corrections
    return a_bar, (step * forced)[..., 0]


def _one_minus(x: Tensor) -> Tensor:
    return torch.stack([1 - x[..., 0], -x[..., 1]], -1)


def _real_coordinates(columns: Tensor) -> Tensor:
    """Pairs (..., N/2, 2, M) as [Re, Im], (..., N, M)."""
    return torch.cat([columns[..., 0, :], columns[..., 1, :]], -2)


def discretize_diagonal(dt_a: Tensor, method: str = "zoh") -> tuple[Tensor, Tensor]:
    """Discretise x' = a x + b u, mode by mode, in real arithmetic.

    The discrete system is x_t = exp(exponent) x_{t-1} + dt * scale * b u_t.

    Args:
        dt_a: (..., N, 2), a times the step, as real pairs with non-positive real part.
        method: ``"zoh"``: exponent = z, scale = (e^z - 1)/z with z = dt_a; or ``"bilinear"``: exponent =
            log((1 + z/2)/(1 - z/2)), scale = 1/(1 - z/2).

    Returns:
        The exponent and the scale, each (..., N, 2).

    Raises:
        ValueError: The method is unknown.

    Source:
        S4D (arXiv 2206.11893), section 3.1, equation 4. Safe at a → 0, where the paper's quotient is 0/0.

    Example:
        >>> exponent, scale = mw.ssm.discretize_diagonal(torch.tensor([[-math.log(2), 0.0]]))
        >>> exponent.exp()[..., 0], scale[..., 0]  # a halves in every step
        (tensor([0.5000]), tensor([0.7213]))
    """
    check_pairs(dt_a=dt_a)
    check_kind(str, method=method)
    if method == "zoh":
        return dt_a, _expm1_over(dt_a)
    if method == "bilinear":
        return _log_bilinear(dt_a), pairs.reciprocal(_one_minus(dt_a / 2))
    raise ValueError(unknown("method: discretization", method, DISCRETIZATIONS))


def _expm1_over(z: Tensor) -> Tensor:
    """(e^z - 1)/z. The Taylor series near 0 keeps the derivative exact too, where the quotient cancels."""
    small = (z.square().sum(-1, keepdim=True) < 1e-4).expand_as(z)
    away = torch.where(small, torch.ones_like(z), z)
    re, im = away[..., 0], away[..., 1]
    numerator = torch.stack(
        [torch.expm1(re) * torch.cos(im) - 2 * torch.sin(im / 2).square(), torch.exp(re) * torch.sin(im)], -1
    )
    near = torch.where(small, z, torch.zeros_like(z))
    one = torch.stack([torch.ones_like(re), torch.zeros_like(re)], -1)
    series = one
    for divisor in (7, 6, 5, 4, 3, 2):
        series = one + pairs.multiply(near, series) / divisor
    return torch.where(small, series, pairs.multiply(numerator, pairs.reciprocal(away)))


def _log_bilinear(z: Tensor) -> Tensor:
    """log((1 + z/2)/(1 - z/2)). At z = -2 the quotient is 0; its logarithm is held at a finite, very negative value."""
    # 1 ± z/2 over the larger of 1 and |z/2|, so that nothing overflows when squared; quotients do not feel it.
    scale = (z.detach().abs().amax(-1) / 2).clamp_min(1)
    one, (re, im) = 1 / scale, (z / 2 / scale[..., None]).unbind(-1)
    above = (one + re).square() + im.square()
    below = (one - re).square() + im.square()
    # |1 + z/2|² - |1 - z/2|² = 2 Re z: the first form is exact for small z, the second one near z = -2.
    ratio = torch.where(above > below / 4, 4 * one * re / below, torch.zeros_like(re))
    far = torch.where(above > below / 4, torch.ones_like(re), above.clamp_min(1e-30))
    size = torch.where(above > below / 4, torch.log1p(ratio) / 2, (torch.log(far) - torch.log(below)) / 2)
    return torch.stack([size, torch.atan2(2 * one * im, one.square() - re.square() - im.square())], -1)
