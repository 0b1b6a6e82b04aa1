"""Long convolution, by its definition: a sum over lags, one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from milkweed.ops._common import compute_dtype


def fft_conv(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None = None,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """``y_t = post_gate_t * (sum_s k_{t-s} v_s + skip * v_t)`` with ``v = pre_gate * u``, lag by lag."""
    dtype = compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    length = u.shape[-1]
    v = u.to(dtype) if pre_gate is None else pre_gate.to(dtype) * u.to(dtype)
    wide = kernel.to(dtype)
    # Only pairs that the sum has: a zero in the place of the others would make NaN of infinity.
    y = wide[:, :1] * v
    for lag in range(1, kernel.shape[-1]):
        y = y + F.pad(wide[:, lag : lag + 1] * v[..., : length - lag], (lag, 0))
    if reverse_kernel is not None:
        wide = reverse_kernel.to(dtype)
        # Nothing is added; for one step, which no negative lag reaches, the gradient is zero and not missing.
        y = y + wide[:, :0].sum()
        for lag in range(1, min(reverse_kernel.shape[-1], length - 1) + 1):
            y = y + F.pad(wide[:, lag - 1 : lag] * v[..., lag:], (0, lag))
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * v
    if post_gate is not None:
        y = post_gate.to(dtype) * y
    return y.to(u.dtype)


def frozen_lags(spectrum: Tensor, points: int, length: int, reach: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """The kernels (H, K) and (H, R), None for R = 0, of a spectrum (H, F, 2) whose other frequencies are zero."""
    # ``reach`` is the greatest lag and the greatest negative lag. Lags that no two of L steps are apart are left out.
    ahead, behind = (min(lag, length - 1) for lag in reach)
    lags = torch.fft.irfft(torch.view_as_complex(spectrum.contiguous()), points)
    return lags[:, : ahead + 1], lags[:, points - behind :].flip(-1) if behind else None


def frozen_conv(
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    ahead: int,
    behind: int,
) -> Tensor:
    """Convolve with a kernel whose lowest frequencies are given, with lags from -behind to ahead."""
    kernel, reverse = frozen_lags(spectrum, points, u.shape[-1], (ahead, behind))
    return fft_conv(u, kernel, reverse, skip, pre_gate, post_gate)
