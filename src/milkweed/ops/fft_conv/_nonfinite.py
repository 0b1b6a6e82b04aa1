"""Convolution of signals that may hold infinities or NaN: they spread as far as the kernel reaches, and no further.

A transform spreads them over the whole sequence. Here they are taken out first, and what depends on them is NaN after.
"""

from __future__ import annotations

import cmath
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Kernel(NamedTuple):
    """A kernel for `convolve`."""

    spectrum: Tensor  # (H, F) complex and finite; frequencies from F on are zero
    exponent: Tensor | None  # (H, 1), the power of two that the spectrum was divided by, or None
    ahead: int  # The greatest lag
    behind: int  # The greatest negative lag
    lost: Tensor | None = None  # (H, L), outputs that depend on a lag that is not finite, or None


def looks_finite(result: Tensor) -> bool:
    """Tell whether transforms met finite numbers only; False where asking would wait for the device."""
    # One that is not finite reaches every output of a transform, so the first output of each row tells.
    return result.device.type == "cpu" and cmath.isfinite(result[..., 0].sum().item())


def finite(x: Tensor) -> Tensor:
    """Put zero in the place of what is not finite, in a new tensor."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def transform(kernel: Tensor, reverse_kernel: Tensor | None, points: int, length: int) -> Kernel:
    """Transform a kernel (H, K) and a reverse kernel (H, R), with zero for what is not finite in them."""
    padded = F.pad(finite(kernel), (0, points - kernel.shape[-1]))
    lost = _any_before(~kernel.isfinite(), length)
    behind = 0
    if reverse_kernel is not None:
        behind = reverse_kernel.shape[-1]
        padded[:, points - behind :] = finite(reverse_kernel).flip(-1)
        # Output t reaches negative lags 1 .. L - 1 - t.
        earlier = _any_before(~reverse_kernel.isfinite(), length)[:, : length - 1].flip(-1)
        lost = lost | F.pad(earlier, (0, 1))
    exponent = _exponent(padded)
    spectrum = torch.fft.rfft(_scaled(padded, -exponent))
    return Kernel(spectrum, exponent, kernel.shape[-1] - 1, behind, lost)


def convolve(v: Tensor, kernel: Kernel, points: int) -> Tensor:
    """Convolve (B, H, L) signals; outputs that depend on something not finite are NaN."""
    # An output overflows only where the exact result does.
    clean = finite(v)
    exponent = _exponent(clean)
    found = torch.fft.rfft(_scaled(clean, -exponent), points)[..., : kernel.spectrum.shape[-1]] * kernel.spectrum
    y = torch.fft.irfft(found, points)[..., : v.shape[-1]]
    y = _scaled(y, exponent if kernel.exponent is None else exponent + kernel.exponent)
    lost = _reached(~v.isfinite(), kernel.ahead, kernel.behind)
    return y.masked_fill_(lost if kernel.lost is None else lost | kernel.lost, torch.nan)


def correlate(g: Tensor, kernel: Kernel, points: int) -> Tensor:
    """Sum over lags the other way round, the derivative by the signal: a convolution of g in reversed time."""
    return convolve(g.flip(-1), kernel, points).flip(-1)


def correlate_signals(g: Tensor, v: Tensor, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Correlate two signals (B, H, L), the derivative by the kernel: a spectrum (H, points / 2 + 1), summed over B."""
    # Beside it, which lags j and which negative lags -1 - j depend on something not finite, (H, L) each.
    spectrum = torch.fft.rfft(finite(g), points) * torch.fft.rfft(finite(v), points).conj_physical()
    g_bad, v_bad = (~g.isfinite()).any(0), (~v.isfinite()).any(0)
    # Lag j meets g from step j on, and v up to step L - 1 - j; lag -1 - j the other way round, one step closer.
    lags = _any_after(g_bad) | _any_after(v_bad.flip(-1))
    reverse = _any_after(v_bad) | _any_after(g_bad.flip(-1))
    return spectrum.sum(0), lags, F.pad(reverse[:, 1:], (0, 1))


def _reached(bad: Tensor, ahead: int, behind: int) -> Tensor:
    """Whether any of the steps t - ahead .. t + behind is marked, (..., L) booleans both."""
    length = bad.shape[-1]
    ahead, behind = min(ahead + 1, length), min(behind, length)
    count = bad.cumsum(-1, dtype=torch.int32)
    upto = torch.cat([count[..., behind:], count[..., -1:].expand(*count.shape[:-1], behind)], -1)
    return upto > F.pad(count[..., : length - ahead], (ahead, 0))


def _any_before(bad: Tensor, length: int) -> Tensor:
    """Whether any of the lags 0 .. t is marked, (H, K) to (H, L)."""
    return F.pad(bad, (0, length - bad.shape[-1])).cumsum(-1, dtype=torch.int32) > 0


def _any_after(bad: Tensor) -> Tensor:
    """Whether any of the steps j .. L - 1 is marked, (H, L) both."""
    return bad.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1) > 0


def _exponent(x: Tensor) -> Tensor:
    """The power of two above each row's greatest number: (..., L) to (..., 1)."""
    return torch.frexp(x.abs().amax(-1, keepdim=True)).exponent


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """X times a power of two, in two steps as the power alone may overflow."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(x, half), exponent - half)
