"""Initial values for diagonal state matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.ssm.hippo import BASES
from milkweed.ssm.nplr import nplr

DIAGONAL_INITS = ("fout", "inv", "inv2", "legs", "lin", "quad", "rand", "real")
COMBINATIONS = {"diag": ("inv", "lin"), "hippo": ("legs", "fout")}


@checked
def diagonal(
    name: str,
    d_state: int,
    n_ssm: int = 1,
    *,
    scale_real: float = 1.0,
    scale_imag: float = 1.0,
    random_real: bool = False,
    random_imag: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Give the eigenvalues of a diagonal state matrix of real size ``d_state``.

    With n = 0 .. N/2 - 1, real part -1/2 and imaginary part: ``legs`` the spectrum of the normal part of HiPPO-LegS,
    ``inv`` (N/π)(N/(2n+1) - 1), ``inv2`` (N/π)(N/(n+1) - 1), ``lin`` πn, ``quad`` (1/π)(1+2n)², ``rand`` exp of a
    standard normal. ``fout`` has the frequencies of the normal part of HiPPO-FouT, which itself does not decay: with
    real part -1/2 it is the same as ``lin``. ``real`` is -(n+1) for n = 0 .. N - 1. ``hippo`` gives the first half of
    the groups to ``legs`` and the second to ``fout``; ``diag`` the same with ``inv`` and ``lin``.

    Args:
        name: One of the names above.
        d_state: N, the size of the real state; even except for ``real``.
        n_ssm: How many groups; even for ``hippo`` and ``diag``. Groups differ where something is random.
        scale_real: Factor on the real part, above 0.
        scale_imag: Factor on the imaginary part.
        random_real: Draw the real part from -U(0, 1) before scaling, for ``real`` from -U(0, N).
        random_imag: Draw n in the formulas from U(0, N/2); not for ``legs``, ``rand`` and ``real``.
        generator: Random numbers.

    Returns:
        (N/2,) complex128, one of each conjugate pair; for ``real`` (N,) float64. With ``n_ssm`` above 1, (n_ssm, ...).

    Raises:
        ValueError: The name is unknown, or an option does not fit it.

    Source:
        S4D (arXiv 2206.11893), section 4; ``rand``, ``inv2``, ``quad`` and the options are from its ablations in
        section 5.2.

    Example:
        >>> mw.ssm.diagonal("lin", 8)
        tensor([-0.5000+0.0000j, -0.5000+3.1416j, -0.5000+6.2832j, -0.5000+9.4248j],
               dtype=torch.complex128)
    """
    parts = COMBINATIONS.get(name, (name,))
    if any(part not in DIAGONAL_INITS for part in parts):
        known = (*DIAGONAL_INITS, *COMBINATIONS)
        if name in BASES:
            raise ValueError(
                f"init={name!r} has no diagonal form; use S4 for it, or of S4D: {', '.join(sorted(known))}"
            )
        raise ValueError(unknown("init", name, known))
    if n_ssm < 1 or n_ssm % len(parts):
        wanted = (
            "at least 1" if len(parts) == 1 else f"a multiple of {len(parts)} for init={name!r} ({', '.join(parts)})"
        )
        raise ValueError(f"n_ssm must be {wanted}; got n_ssm={n_ssm}")
    if not 0 < scale_real < math.inf:
        raise ValueError(f"scale_real must be above 0 and finite, or the state would not decay; got {scale_real}")
    if not math.isfinite(scale_imag):
        raise ValueError(f"scale_imag must be finite; got {scale_imag}")
    A = torch.stack(
        [
            _scaled(_eigenvalues(part, d_state, random_real, random_imag, generator), scale_real, scale_imag)
            for part in parts
            for _ in range(n_ssm // len(parts))
        ]
    )
    return A[0] if n_ssm == 1 else A


def _eigenvalues(
    name: str, d_state: int, random_real: bool, random_imag: bool, generator: torch.Generator | None
) -> Tensor:
    if d_state < 1 or (name != "real" and d_state % 2):
        raise ValueError(
            f"init={name!r} needs an even d_state of at least 2 (conjugate pairs); got d_state={d_state}"
            if name != "real"
            else f"d_state must be at least 1; got {d_state}"
        )
    if random_imag and name in ("legs", "rand", "real"):
        raise ValueError(
            f"random_imag needs an init whose formula contains n: inv, inv2, lin or quad; got init={name!r}"
        )
    modes = d_state if name == "real" else d_state // 2
    # 1 - U[0, 1) is in (0, 1]: the state always decays, and the logarithm of the rate exists.
    uniform = 1 - torch.rand(modes, dtype=torch.float64, generator=generator) if random_real else None
    if name == "real":
        return -torch.arange(1, modes + 1, dtype=torch.float64) if uniform is None else -modes * uniform
    imag = _frequencies(name, d_state, random_imag, generator)
    return torch.complex(torch.full_like(imag, -0.5) if uniform is None else -uniform, imag)


def _frequencies(name: str, d_state: int, random_imag: bool, generator: torch.Generator | None) -> Tensor:
    N, pairs = d_state, d_state // 2
    if name == "legs":
        return nplr("legs", N).Lambda.imag
    if name == "rand":
        return torch.randn(pairs, dtype=torch.float64, generator=generator).exp()
    n = torch.arange(pairs, dtype=torch.float64)
    if random_imag:
        n = pairs * torch.rand(pairs, dtype=torch.float64, generator=generator)
    if name == "inv":
        return N / math.pi * (N / (2 * n + 1) - 1)
    if name == "inv2":
        return N / math.pi * (N / (n + 1) - 1)
    if name == "quad":
        return (1 + 2 * n).square() / math.pi
    return math.pi * n


def _scaled(A: Tensor, real: float, imag: float) -> Tensor:
    return torch.complex(A.real * real, A.imag * imag) if A.is_complex() else A * real
