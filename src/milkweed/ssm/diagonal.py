"""Initial values for diagonal state matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._suggest import unknown
from milkweed.ssm.hippo import hippo

DIAGONAL_INITS = ("inv", "legs", "lin", "rand", "real")


def diagonal(name: str, d_state: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Give the eigenvalues of a diagonal state matrix of real size ``d_state``.

    With n = 0 .. N/2 - 1 and real part -1/2: ``legs`` the spectrum of the normal part of HiPPO-LegS, ``inv``
    (N/π)(N/(2n+1) - 1), ``lin`` πn, ``rand`` exp of a standard normal. ``real`` is -(n+1) for n = 0 .. N - 1.

    Args:
        name: One of the names above.
        d_state: N, the size of the real state; even except for ``real``.
        generator: Random numbers for ``rand``.

    Returns:
        (N/2,) complex128, one of each conjugate pair; for ``real`` (N,) float64.

    Raises:
        ValueError: The name is unknown, or ``d_state`` does not fit it.

    Source:
        S4D (arXiv 2206.11893), section 4; ``rand`` is its ablation in section 5.2.
    """
    if name not in DIAGONAL_INITS:
        raise ValueError(unknown("init", name, DIAGONAL_INITS))
    if d_state < 1 or (name != "real" and d_state % 2):
        raise ValueError(
            f"init={name!r} needs an even d_state of at least 2 (conjugate pairs); got d_state={d_state}"
            if name != "real"
            else f"d_state must be at least 1; got {d_state}"
        )
    if name == "real":
        return -torch.arange(1, d_state + 1, dtype=torch.float64)
    pairs = d_state // 2
    n = torch.arange(pairs, dtype=torch.float64)
    if name == "legs":
        imag = _legs_frequencies(d_state)
    elif name == "inv":
        imag = d_state / math.pi * (d_state / (2 * n + 1) - 1)
    elif name == "lin":
        imag = math.pi * n
    else:
        imag = torch.randn(pairs, dtype=torch.float64, generator=generator).exp()
    return torch.complex(torch.full_like(imag, -0.5), imag)


def _legs_frequencies(d_state: int) -> Tensor:
    """Positive imaginary parts of the eigenvalues of A + P Pᵀ, ascending, P = √(n + ½)."""
    A, _ = hippo("legs", d_state)
    P = torch.sqrt(torch.arange(d_state, dtype=torch.float64) + 0.5)
    normal = A + P[:, None] * P[None, :]
    skew = (normal - normal.T) / 2
    # -i S is Hermitian: its real eigenvalues are the frequencies, found far more exactly than by a general eig.
    return torch.linalg.eigvalsh(-1j * skew)[d_state // 2 :]
