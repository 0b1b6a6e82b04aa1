"""Kernels of a state space, and the functions they are in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.ssm.hippo import BASES, check_basis, laguerre_parameters


@checked
def basis(A: Tensor, B: Tensor, times: Tensor) -> Tensor:
    """Evaluate the kernels K(t) = e^{tA} B of x' = A x + B u.

    On evenly spaced times, e^{tA} is evaluated for log₂ T of them only, and these are composed.

    Args:
        A: (N, N).
        B: (N,).
        times: (T,), how long ago.

    Returns:
        (N, T) float64.

    Raises:
        ValueError: A shape does not fit.

    Source:
        How to Train Your HiPPO (arXiv 2206.12037), section 2.1.

    Example:
        >>> A, B = mw.ssm.hippo("legs", 4)
        >>> mw.ssm.basis(A, B, torch.linspace(0, 1, 6)).shape
        torch.Size([4, 6])
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1] or B.shape != A.shape[:1]:
        raise ValueError(f"A must be (N, N) and B (N,); got shapes {tuple(A.shape)} and {tuple(B.shape)}")
    times = _check_times(times)
    A, B = A.double(), B.double()
    if len(times) < 3 or not _evenly_spaced(times):
        columns = [torch.linalg.matrix_exp(t * A) @ B for t in times]
        return torch.stack(columns, -1) if columns else B.new_zeros(len(B), 0)
    step = (times[-1] - times[0]) / (len(times) - 1)
    kernels = (torch.linalg.matrix_exp(times[0] * A) @ B)[:, None]
    while kernels.shape[1] < len(times):
        later = torch.linalg.matrix_exp(step * kernels.shape[1] * A) @ kernels
        kernels = torch.cat([kernels, later], 1)
    return kernels[:, : len(times)]


@checked
def basis_functions(
    name: str, d_state: int, times: Tensor, *, alpha: float | None = None, beta: float | None = None
) -> Tensor:
    """Evaluate the functions p_n in which a HiPPO basis writes the past: u(now - t) ≈ Σ_n x_n p_n(t).

    With ω the basis' measure, its kernels are K_n = p_n ω: exactly for ``legs``, ``foud``, ``lagt`` and ``glagt``,
    within the window for ``chebt``, and for the others weakly as N grows. The p_n are orthonormal under ω except that
    ``foud`` is so only nearly, and that ``lmu`` is not normalised: there p_n = P_n(2t - 1), of square norm 1/(2n+1),
    and K_n = (2n+1) p_n ω. The functions of ``chebt``, and of ``glagt`` with alpha < 0, are infinite at the ends.

    Args:
        name: As in [`milkweed.ssm.hippo`][].
        d_state: N, the number of functions.
        times: (T,), how long ago. Beyond the basis' window the functions are 0.
        alpha: For ``glagt``.
        beta: For ``glagt``.

    Returns:
        (N, T) float64.

    Raises:
        ValueError: The basis is unknown or an argument does not fit it.

    Source:
        How to Train Your HiPPO (arXiv 2206.12037), section 4; HiPPO (arXiv 2008.07669), appendices D.2 and D.5, with
        the tilt χ included in the functions.

    Example:
        >>> mw.ssm.basis_functions("legt", 3, torch.tensor([0.0, 1.0]))
        tensor([[ 1.0000,  1.0000],
                [ 1.7321,  0.0000],
                [ 2.2361, -1.1180]], dtype=torch.float64)
    """
    check_basis(name, d_state)
    alpha, beta = laguerre_parameters(name, alpha, beta)
    t = _check_times(times)
    inside = (t >= 0) & (t <= BASES[name].window)
    t = torch.where(inside, t, 0.0)
    root = torch.sqrt(2 * torch.arange(d_state, dtype=torch.float64) + 1)[:, None]
    if name in ("legs", "legsd"):
        p = root * _legendre(2 * torch.exp(-t) - 1, d_state)
    elif name == "legt":
        p = root * _legendre(1 - t, d_state)
    elif name == "lmu":
        p = _legendre(2 * t - 1, d_state)
    elif name == "lagt":
        p = _laguerre(t, d_state, 0.0) * torch.exp(-t / 2)
    elif name == "glagt":
        p = _tilted_laguerre(t, d_state, alpha, beta)
    elif name == "chebt":
        p = torch.cos(torch.arange(d_state)[:, None] * torch.acos(1 - t)) / torch.sqrt(t * (2 - t))
        p[0] /= math.sqrt(2)
    else:
        p = _fourier((2 if name == "foud" else 1) * math.pi * t, d_state)
    return torch.where(inside, p, 0.0)


@checked
def measure(name: str, times: Tensor, *, alpha: float | None = None, beta: float | None = None) -> Tensor:
    """Evaluate the density ω by which a HiPPO basis weighs the past.

    All integrate to 1 except ``lagt``, which weighs all the past the same.

    Args:
        name: As in [`milkweed.ssm.hippo`][].
        times: (T,), how long ago.
        alpha: For ``glagt``.
        beta: For ``glagt``.

    Returns:
        (T,) float64.

    Raises:
        ValueError: The basis is unknown or an argument does not fit it.

    Source:
        As in [`milkweed.ssm.basis_functions`][]; that of ``fourier_decay`` follows from its transfer function in the
        limit, see the README beside this file.

    Example:
        >>> mw.ssm.measure("legt", torch.tensor([0.0, 1.0, 3.0]))
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    check_basis(name, 1)
    alpha, beta = laguerre_parameters(name, alpha, beta)
    t = _check_times(times)
    window = BASES[name].window
    inside = (t >= 0) & (t <= window)
    t = torch.where(inside, t, 0.0)
    if name in ("legs", "legsd"):
        density = torch.exp(-t)
    elif name in ("legt", "fout", "lmu"):
        density = torch.full_like(t, 1 / window)
    elif name == "fourier_decay":
        density = torch.pow(3.0, -(torch.floor(t / 2) + 1))
    elif name == "foud":
        density = torch.exp(-t / 2) / 2
    elif name == "lagt":
        density = torch.ones_like(t)
    elif name == "glagt":
        density = t**-alpha * torch.exp(-beta * t) * beta ** (1 - alpha) / math.gamma(1 - alpha)
    else:
        density = 2 / math.pi * torch.sqrt(t * (2 - t))
    return torch.where(inside, density, 0.0)


def _check_times(times: Tensor) -> Tensor:
    if times.ndim != 1:
        raise ValueError(f"times must be (T,); got shape {tuple(times.shape)}")
    return times.double()


def _evenly_spaced(times: Tensor) -> bool:
    even = torch.linspace(0, 1, len(times), dtype=torch.float64) * (times[-1] - times[0]) + times[0]
    return bool((times - even).abs().max() <= 1e-14 * times.abs().max())


def _legendre(x: Tensor, count: int) -> Tensor:
    """P_0 … P_{count-1} at x (T,): (count, T), by the three-term recurrence, which is stable on [-1, 1]."""
    rows = [torch.ones_like(x), x]
    for n in range(1, count - 1):
        rows.append(((2 * n + 1) * x * rows[n] - n * rows[n - 1]) / (n + 1))
    return torch.stack(rows[:count])


def _laguerre(t: Tensor, count: int, alpha: float) -> Tensor:
    """L_0^α … L_{count-1}^α at t (T,): (count, T)."""
    rows = [torch.ones_like(t), 1 + alpha - t]
    for n in range(1, count - 1):
        rows.append(((2 * n + 1 + alpha - t) * rows[n] - (n + alpha) * rows[n - 1]) / (n + 1))
    return torch.stack(rows[:count])


def _tilted_laguerre(t: Tensor, count: int, alpha: float, beta: float) -> Tensor:
    n = torch.arange(count, dtype=torch.float64)
    norm = torch.exp((torch.lgamma(n + 1) - torch.lgamma(n + alpha + 1)) / 2)
    zeta = math.gamma(1 - alpha) * beta ** (alpha - 1)
    tilt = t**alpha * torch.exp(-(1 - beta) / 2 * t)
    return norm[:, None] * _laguerre(t, count, alpha) * tilt * math.sqrt(zeta)


def _fourier(angle: Tensor, count: int) -> Tensor:
    """1, √2 cos, √2 sin, √2 cos 2·, … of angle (T,): (count, T)."""
    harmonics = torch.arange(1, count // 2 + 1, dtype=torch.float64)[:, None] * angle
    waves = torch.stack([torch.cos(harmonics), torch.sin(harmonics)], 1).flatten(0, 1)
    return torch.cat([torch.ones_like(angle)[None], math.sqrt(2) * waves])
