"""Kernels that do not change, held as spectra: their transform is made once, and frequencies they lack cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from milkweed._arguments import LARGEST, check_real, checked, is_kind
from milkweed.ops._common import compute_dtype
from milkweed.ops.fft_conv._blocks import least_points

# The Triton backend's shortest transform.
_LEAST_POINTS = 256

T = TypeVar("T")


class FrozenKernel:
    """A convolution kernel for inference, which [`fft_conv`][milkweed.ops.fft_conv] takes in place of a tensor.

    Nothing that happens to the tensors afterwards changes it, and no gradient reaches them.

    Args:
        kernel: (H, K) for lags 0 .. K - 1, real.
        reverse_kernel: (H, R) for lags -1 .. -R.
        length: L, the longest signal it will be used on; the spectrum has the next power of two of points that such a
            convolution needs.
        bandwidth: Share of the frequencies that are kept, the lowest ones, 0 < bandwidth <= 1. Below 1 the kernel is
            smoothed over all lags, the future's too; what is left out is not computed.

    Attributes:
        spectrum: (H, F, 2), real pairs: the discrete Fourier transform over ``points``, up to the last frequency kept.
        points: Of the transform.
        reach: The greatest lag and the greatest negative lag; every lag of the circle if frequencies were left out.

    Raises:
        ValueError: A shape or a number does not fit.
        TypeError: A kernel is not real floating point.

    Source:
        Frequency-sparse convolutions: FlashFFTConv (arXiv 2311.05908), section 3.3, which leaves out blocks of a
        permuted spectrum; here the highest frequencies, whatever the order.

    Example:
        >>> u, kernel = torch.randn(2, 4, 100), torch.randn(4, 100)
        >>> frozen = mw.ops.FrozenKernel(kernel, length=100)
        >>> torch.allclose(mw.ops.fft_conv(u, frozen), mw.ops.fft_conv(u, kernel), atol=1e-4)
        True
    """

    @checked(but=("length",))
    def __init__(
        self, kernel: Tensor, reverse_kernel: Tensor | None = None, *, length: int, bandwidth: float = 1.0
    ) -> None:
        kernels = {"kernel": kernel} | ({} if reverse_kernel is None else {"reverse_kernel": reverse_kernel})
        check_real(**kernels)
        for name, lags in kernels.items():
            if lags.ndim != 2 or 0 in lags.shape or lags.shape[0] != kernel.shape[0]:
                channels = "" if lags is kernel else f" with H = {kernel.shape[0]}"
                raise ValueError(f"{name} must be (H, lags){channels}; got shape {tuple(lags.shape)}")
        reverse = 0 if reverse_kernel is None else reverse_kernel.shape[-1]
        if not is_kind(length, int) or length > LARGEST or length < max(kernel.shape[1], reverse):
            raise ValueError(
                f"length must be an integer of at least the {max(kernel.shape[1], reverse)} lags of the kernel; "
                f"got {length!r}; crop the kernel"
            )
        if not 0 < bandwidth <= 1:
            raise ValueError(f"bandwidth must be in 0 < bandwidth <= 1; got {bandwidth}")
        length = int(length)
        self.channels, self.length = kernel.shape[0], length
        least = least_points(length, kernel.shape[1], reverse)
        self.points = max(_LEAST_POINTS, 1 << max(least - 1, 0).bit_length())
        dtype = compute_dtype(kernel, reverse_kernel)
        padded = torch.zeros(self.channels, self.points, dtype=dtype, device=kernel.device)
        padded[:, : kernel.shape[1]] = kernel.detach()
        if reverse_kernel is not None:
            padded[:, self.points - reverse :] = reverse_kernel.detach().flip(-1)
        every = self.points // 2 + 1
        kept = max(1, round(bandwidth * every))
        self.reach = (kernel.shape[1] - 1, reverse) if kept == every else (self.points - 1, self.points - 1)
        self.spectrum = torch.view_as_real(torch.fft.rfft(padded)[:, :kept]).clone()
        self._layouts: dict[Hashable, Any] = {}

    def layout(self, key: Hashable, make: Callable[[], T]) -> T:
        """Keep what a backend makes of the spectrum under a key, all that it depends on; it is made the first time."""
        if key not in self._layouts:
            self._layouts[key] = make()
        found: T = self._layouts[key]
        return found

    def __repr__(self) -> str:
        kept, every = self.spectrum.shape[1], self.points // 2 + 1
        return f"FrozenKernel(channels={self.channels}, length={self.length}, {kept} of {every} frequencies)"
