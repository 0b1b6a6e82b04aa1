"""HiPPO matrices: state spaces whose states are coefficients of the past in an orthogonal basis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed._suggest import unknown


@checked
def hippo(name: str, d_state: int, *, alpha: float | None = None, beta: float | None = None) -> tuple[Tensor, Tensor]:
    """Give the matrices of x' = A x + B u for a HiPPO basis.

    The states are coefficients of u's past in the functions of [`milkweed.ssm.basis_functions`][] under the measure of
    [`milkweed.ssm.measure`][]. (Δ A, Δ B) stretches both by 1/Δ.

    | name | functions of the time ago | measure |
    | --- | --- | --- |
    | ``legs`` | Legendre polynomials in e^{-t} | e^{-t} |
    | ``legsd`` | the same in the limit: the normal part of ``legs`` alone, with half its B | e^{-t} |
    | ``legt`` | Legendre polynomials | ½ on [0, 2] |
    | ``lmu`` | Legendre polynomials, neither normalised nor halved | 1 on [0, 1] |
    | ``fout`` | cos(πnt), sin(πnt) | ½ on [0, 2] |
    | ``fourier_decay`` | the same | 3^-(⌊t/2⌋ + 1) |
    | ``foud`` | cos(2πnt), sin(2πnt), nearly orthonormal | ½ e^{-t/2} |
    | ``lagt`` | Laguerre functions | 1 |
    | ``glagt`` | generalised Laguerre functions | ∝ t^-α e^{-βt} |
    | ``chebt`` | Chebyshev polynomials | semicircle on [0, 2] |

    Args:
        name: One of the names above.
        d_state: N, the number of coefficients. Odd for the Fourier bases: a constant, then pairs of cos and sin.
        alpha: For ``glagt`` only: below 1 and above -1, 0 by default.
        beta: For ``glagt`` only: above 0, 1 by default.

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        ValueError: The name is unknown, ``d_state`` does not fit it, or an option is out of range or not the basis'.

    Source:
        How to Train Your HiPPO (arXiv 2206.12037), sections 3 and 4, with halved ``legt`` as in its released code;
        ``glagt`` and ``chebt``: HiPPO (arXiv 2008.07669), appendices D.2 and D.5. ``chebt`` follows the paper in taking
        the sample that leaves the window for 0: its kernels grow after the window and it forgets nothing.

    Example:
        >>> A, B = mw.ssm.hippo("legs", 4)
        >>> A.diagonal()
        tensor([-1., -2., -3., -4.], dtype=torch.float64)
        >>> B.square().round()
        tensor([1., 3., 5., 7.], dtype=torch.float64)
    """
    check_basis(name, d_state)
    alpha, beta = laguerre_parameters(name, alpha, beta)
    return _glagt(d_state, alpha, beta) if name == "glagt" else BASES[name].matrices(d_state)


def check_basis(name: str, d_state: int) -> None:
    """Refuse an unknown basis, or a size it does not have."""
    if name not in BASES:
        raise ValueError(unknown("name", name, BASES))
    if d_state < 1:
        raise ValueError(f"d_state must be at least 1; got {d_state}")
    if BASES[name].fourier and d_state % 2 == 0:
        raise ValueError(
            f"name={name!r} needs an odd d_state, a constant and pairs of cos and sin; got d_state={d_state}; "
            f"use {d_state - 1} or {d_state + 1}"
        )


def laguerre_parameters(name: str, alpha: float | None, beta: float | None) -> tuple[float, float]:
    """Fill in (0 and 1) and check alpha in (-1, 1) and beta > 0, which only the generalised Laguerre basis takes."""
    if name != "glagt" and (alpha is not None or beta is not None):
        raise ValueError(f"alpha and beta belong to name='glagt'; got alpha={alpha}, beta={beta} for name={name!r}")
    alpha, beta = 0.0 if alpha is None else alpha, 1.0 if beta is None else beta
    if not -1 < alpha < 1 or not 0 < beta < math.inf:
        raise ValueError(f"expected -1 < alpha < 1 and beta > 0; got alpha={alpha}, beta={beta}")
    return alpha, beta


@dataclass(frozen=True)
class HippoBasis:
    """The facts about one basis.

    Args:
        matrices: N to A (N, N) and B (N,); for ``glagt`` at its default parameters.
        window: Length of the past that its measure covers.
        correction: N to P (rank, N) such that A + Pᵀ P = damping I + skew; None where no such P of low rank exists.
        damping: Real part of that normal matrix.
        fourier: Whether its rows are a constant and pairs of cos and sin.

    Example:
        >>> from milkweed.ssm.hippo import BASES
        >>> BASES["legt"].window, BASES["fout"].fourier
        (2.0, True)
    """

    matrices: Callable[[int], tuple[Tensor, Tensor]]
    window: float
    correction: Callable[[int], Tensor] | None = None
    damping: float = 0.0
    fourier: bool = False

    @property
    def rank(self) -> int | None:
        """Rank of the normal correction; None for a basis without one."""
        return None if self.correction is None else len(self.correction(1))


def _count(d_state: int) -> Tensor:
    return torch.arange(d_state, dtype=torch.float64)


def _legs(d_state: int) -> tuple[Tensor, Tensor]:
    n = _count(d_state)
    B = torch.sqrt(2 * n + 1)
    return -(torch.tril(torch.outer(B, B), -1) + torch.diag(n + 1)), B


def _legsd(d_state: int) -> tuple[Tensor, Tensor]:
    A, B = _legs(d_state)
    # Written out, so that the diagonal is exactly -1/2 and the rest exactly skew.
    below = torch.tril(A, -1) / 2
    return below - below.T - torch.eye(d_state, dtype=torch.float64) / 2, B / 2


def _legt(d_state: int) -> tuple[Tensor, Tensor]:
    n = _count(d_state)
    root = torch.sqrt(2 * n + 1)
    sign = torch.where(n[:, None] >= n, 1.0, 1 - 2 * ((n[:, None] - n) % 2))
    return -sign * torch.outer(root, root) / 2, root / 2


def _lmu(d_state: int) -> tuple[Tensor, Tensor]:
    n = _count(d_state)
    B = (1 - 2 * (n % 2)) * (2 * n + 1)
    sign = torch.where(n[:, None] < n, -1.0, 2 * ((n[:, None] - n) % 2) - 1)
    return sign * (2 * n + 1)[:, None], B


def _rotation(d_state: int, frequency: float) -> Tensor:
    """The skew matrix whose flow turns a constant and pairs cos nωt, sin nωt."""
    S = torch.zeros(d_state, d_state, dtype=torch.float64)
    cos = torch.arange(1, d_state, 2)
    omega = frequency * torch.arange(1, len(cos) + 1, dtype=torch.float64)
    S[cos, cos + 1], S[cos + 1, cos] = -omega, omega
    return S


def _fourier_at_zero(d_state: int) -> Tensor:
    """The Fourier functions at time 0: [1, √2, 0, √2, 0, …]."""
    B = torch.zeros(d_state, dtype=torch.float64)
    B[1::2] = math.sqrt(2)
    B[0] = 1
    return B


def _fout(d_state: int) -> tuple[Tensor, Tensor]:
    B = _fourier_at_zero(d_state)
    return _rotation(d_state, math.pi) - torch.outer(B, B), B


def _fourier_decay(d_state: int) -> tuple[Tensor, Tensor]:
    B = _fourier_at_zero(d_state)
    return _rotation(d_state, math.pi) - torch.outer(B, B) / 2, B / 2


def _foud(d_state: int) -> tuple[Tensor, Tensor]:
    damping = torch.eye(d_state, dtype=torch.float64) / 2
    return _rotation(d_state, 2 * math.pi) - damping, _fourier_at_zero(d_state) / 2


def _lagt(d_state: int) -> tuple[Tensor, Tensor]:
    ones = torch.ones(d_state, dtype=torch.float64)
    return torch.eye(d_state, dtype=torch.float64) / 2 - torch.tril(torch.outer(ones, ones)), ones


def _glagt(d_state: int, alpha: float = 0.0, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    n = _count(d_state)
    norm = torch.exp((torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1)) / 2)
    plain = -torch.tril(torch.ones(d_state, d_state, dtype=torch.float64), -1)
    A = plain * norm / norm[:, None] - (1 + beta) / 2 * torch.eye(d_state, dtype=torch.float64)
    # L_n^α(0) = Γ(n + α + 1) / (n! Γ(α + 1)), which is norm² / Γ(α + 1).
    return A, norm / math.gamma(alpha + 1) * math.sqrt(beta ** (1 - alpha) / math.gamma(1 - alpha))


def _chebt(d_state: int) -> tuple[Tensor, Tensor]:
    n = _count(d_state)
    apart = n[:, None] - n
    A = torch.where((apart > 0) & (apart % 2 == 1), -2 * n[:, None], 0.0)
    A[:, 0] /= math.sqrt(2)
    B = torch.full((d_state,), 2 / math.pi, dtype=torch.float64)
    B[0] /= math.sqrt(2)
    return A, B


def _half_legendre(d_state: int) -> Tensor:
    return torch.sqrt(_count(d_state) + 0.5)[None]


def _by_parity(d_state: int) -> Tensor:
    n = _count(d_state)
    return torch.stack([n % 2, 1 - n % 2]) * torch.sqrt(n + 0.5)


def _nothing(d_state: int) -> Tensor:
    return torch.zeros(0, d_state, dtype=torch.float64)


def _half_ones(d_state: int) -> Tensor:
    return torch.full((1, d_state), math.sqrt(0.5), dtype=torch.float64)


BASES: dict[str, HippoBasis] = {
    "legs": HippoBasis(_legs, math.inf, _half_legendre, -0.5),
    "legsd": HippoBasis(_legsd, math.inf, _nothing, -0.5),
    "legt": HippoBasis(_legt, 2.0, _by_parity),
    "lmu": HippoBasis(_lmu, 1.0),
    "fout": HippoBasis(_fout, 2.0, lambda n: _fourier_at_zero(n)[None], fourier=True),
    "fourier_decay": HippoBasis(
        _fourier_decay, math.inf, lambda n: _fourier_at_zero(n)[None] / math.sqrt(2), fourier=True
    ),
    "foud": HippoBasis(_foud, math.inf, _nothing, -0.5, fourier=True),
    "lagt": HippoBasis(_lagt, math.inf, _half_ones),
    "glagt": HippoBasis(_glagt, math.inf, _half_ones, -0.5),
    "chebt": HippoBasis(_chebt, 2.0),
}
