"""One block of channels in a convolution: from spectra, or if not all is finite from the signals themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from milkweed.ops.fft_conv import _nonfinite
from milkweed.ops.fft_conv._blocks import Padded


class Channels:
    """A block of channels with its kernel: as a spectrum, and as `_nonfinite` takes it for signals that need it.

    Nothing is taken to be finite where to ask would be to wait for the device.
    """

    def __init__(
        self, padded: Padded, channels: slice, careful: Callable[[], _nonfinite.Kernel], spectrum: Tensor | None
    ) -> None:
        self.padded, self.plan, self.slice = padded, padded.plan, channels
        self._careful, self._spectrum = careful, spectrum

    def transform(self, batch: slice) -> Tensor | None:
        """The spectra of the signals that were loaded last, (b, c, F), or None if they are not to be relied on."""
        if not self.plan.asks:
            return None
        self._spectrum, found = self.padded.spectra(batch, self.slice, self._spectrum)
        return found[..., : self._spectrum.shape[-1]]

    def convolve(self, found: Tensor | None, v: Tensor) -> Tensor:
        """Convolve signals, from their spectra, which are written over, or from themselves."""
        if found is not None and self._spectrum is not None:
            y = self.plan.signal(found.mul_(self._spectrum))
            if _nonfinite.looks_finite(y):
                return y
        return _nonfinite.convolve(v, self._careful(), self.plan.n)

    def correlate(self, found: Tensor | None, g: Callable[[], Tensor]) -> Tensor:
        """The same with the lags the other way round."""
        if found is not None and self._spectrum is not None:
            # Written out: torch.compile (2.13) loses the lazy conjugates of a custom op.
            y = self.plan.signal(found.mul_(self._spectrum.conj_physical()))
            if _nonfinite.looks_finite(y):
                return y
        return _nonfinite.correlate(g(), self._careful(), self.plan.n)


class LagSums:
    """The gradient of a block's kernel: correlations of upstream gradients with signals, summed over the batch."""

    def __init__(self, padded: Padded, channels: slice) -> None:
        self._plan = padded.plan
        zeros = padded.zeros(channels)
        self._sum = torch.complex(zeros, zeros)[:, None].repeat(1, self._plan.n // 2 + 1)
        self._lost: list[tuple[Tensor, Tensor]] = []

    def add(self, dz_spectrum: Tensor | None, v_spectrum: Tensor | None, dz: Callable[[], Tensor], v: Tensor) -> None:
        """Add a part of the batch, from spectra or from the signals themselves."""
        if dz_spectrum is not None and v_spectrum is not None:
            # Written out, as above.
            found = (dz_spectrum * v_spectrum.conj_physical()).sum(0)
            if _nonfinite.looks_finite(found):
                self._sum += found
                return
        found, *lost = _nonfinite.correlate_signals(dz(), v, self._plan.n)
        self._sum += found
        self._lost.append((lost[0], lost[1]))

    def total(self, reverse_lags: int) -> tuple[Tensor, Tensor]:
        """The gradients of the lags 0 .. L - 1, and of so many negative ones."""
        plan = self._plan
        lags = torch.fft.irfft(self._sum, plan.n)
        forward, backward = lags[:, : plan.length], lags[:, plan.n - reverse_lags :].flip(-1)
        for lost, lost_backward in self._lost:
            forward.masked_fill_(lost, torch.nan)
            backward.masked_fill_(lost_backward[:, :reverse_lags], torch.nan)
        return forward, backward
