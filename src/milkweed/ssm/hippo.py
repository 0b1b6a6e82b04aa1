"""HiPPO matrices: state spaces whose states are coefficients of the past in an orthogonal basis."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed._suggest import unknown


def hippo(name: str, d_state: int) -> tuple[Tensor, Tensor]:
    """Give the matrices of x' = A x + B u for a HiPPO basis.

    Args:
        name: ``"legs"``, exponentially warped Legendre polynomials.
        d_state: N, the number of coefficients.

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        ValueError: The name is unknown, or ``d_state`` is below 1.

    Source:
        How to Train Your HiPPO (arXiv 2206.12037), section 3, equation 6.
    """
    if d_state < 1:
        raise ValueError(f"d_state must be at least 1; got {d_state}")
    if name not in _BASES:
        raise ValueError(unknown("name", name, _BASES))
    return _BASES[name](d_state)


def _legs(d_state: int) -> tuple[Tensor, Tensor]:
    n = torch.arange(d_state, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    return -(torch.tril(B[:, None] * B[None, :], -1) + torch.diag(n + 1)), B


_BASES = {"legs": _legs}
