"""Long convolution, by its definition: a sum over lags, written as one matrix product per channel."""

from __future__ import annotations

import torch
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
    """``y_t = post_t * (sum_s k_{t-s} v_s + skip * v_t)`` with ``v = pre_gate * u``, as a Toeplitz product.

    Args:
        u: (B, H, L).
        kernel: (H, K) for lags 0 .. K - 1.
        reverse_kernel: (H, R) for lags -1 .. -R.
        skip: (H,).
        pre_gate: (B, H, L).
        post_gate: (B, H, L).

    Returns:
        (B, H, L) in ``u``'s dtype.
    """
    dtype = compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    length = u.shape[-1]
    v = u.to(dtype) if pre_gate is None else pre_gate.to(dtype) * u.to(dtype)
    time = torch.arange(length, device=u.device)
    lag = time[:, None] - time[None, :]
    matrix = _at_lag(kernel.to(dtype), lag)
    if reverse_kernel is not None:
        matrix = matrix + _at_lag(reverse_kernel.to(dtype), -lag - 1)
    y = torch.einsum("hts,bhs->bht", matrix, v)
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * v
    if post_gate is not None:
        y = post_gate.to(dtype) * y
    return y.to(u.dtype)


def _at_lag(kernel: Tensor, lag: Tensor) -> Tensor:
    """The kernel's values at every lag of a matrix, zero outside its support: (H, L, L)."""
    inside = (lag >= 0) & (lag < kernel.shape[-1])
    return kernel[:, lag.clamp(0, kernel.shape[-1] - 1)] * inside


def frozen_conv(
    u: Tensor, spectrum: Tensor, points: int, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    """Convolve with every lag, around the circle of ``points``, of the kernel whose lowest frequencies are given.

    Args:
        u: (B, H, L).
        spectrum: (H, F, 2); frequencies from F on are zero.
        points: Of the transform.
        skip: (H,).
        pre_gate: (B, H, L).
        post_gate: (B, H, L).

    Returns:
        (B, H, L) in ``u``'s dtype.
    """
    lags = torch.fft.irfft(torch.view_as_complex(spectrum.contiguous()), points)
    ahead = lags[:, points - u.shape[-1] + 1 :].flip(-1) if u.shape[-1] > 1 else None
    return fft_conv(u, lags[:, : u.shape[-1]], ahead, skip, pre_gate, post_gate)
