"""How a convolution is cut: the FFT's length, blocks of channels that stay in cache, and padded memory for them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from milkweed.ops._common import rows_per_block, slices

# One padded signal block; its spectrum and the inverse transform come on top. Measured best of 1 .. 8 MiB.
_BLOCK_BYTES = 4 * 2**20
# Channels taken together at least: a (B, L, H) signal viewed as (B, H, L) is then read in whole cache lines.
_LEAST_CHANNELS = 16


def fft_length(least: int) -> int:
    """Find the shortest even length of at least ``least`` with factors 2, 3 and 5 only, which FFTs are fast at."""
    best = 1 << max(least - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-least // three)
            best = min(best, three * max(2, 1 << (rest - 1).bit_length()))
            three *= 3
        five *= 5
    return best


def least_points(length: int, lags: int, reverse_lags: int) -> int:
    """Count the points of the shortest circular convolution that equals the linear one, for K and R lags."""
    # Nothing may wrap around into 0 .. L - 1, and the two ends of the kernel may not overlap.
    return max(length + max(lags - 1, reverse_lags), lags + reverse_lags)


class Plan:
    """The FFT length and the blocks of one convolution."""

    def __init__(self, u: Tensor, points: int, dtype: torch.dtype) -> None:
        self.batch, self.channels, self.length = u.shape
        self.n = points
        self.dtype = dtype
        self.asks = u.device.type == "cpu"
        rows = rows_per_block(
            self.batch * self.channels, self.n * (8 if dtype == torch.float64 else 4), u.device, budget=_BLOCK_BYTES
        )
        self.channel_step = max(min(max(rows // max(self.batch, 1), min(_LEAST_CHANNELS, rows)), self.channels), 1)
        self.batch_step = max(1, min(self.batch, rows // max(self.channel_step, 1)))

    @classmethod
    def with_kernels(cls, u: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, dtype: torch.dtype) -> Plan:
        reverse = 0 if reverse_kernel is None else reverse_kernel.shape[-1]
        return cls(u, fft_length(least_points(u.shape[-1], kernel.shape[-1], reverse)), dtype)

    def channel_blocks(self) -> Iterator[slice]:
        return slices(self.channels, self.channel_step)

    def batch_blocks(self) -> Iterator[slice]:
        return slices(self.batch, self.batch_step)

    def signal(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft(spectrum, self.n)[..., : self.length]


class Padded:
    """Zero-padded memory that every block is written into: padding anew would cost a pass and fresh pages each time.

    Row 0 holds the kernel, whose transform rides along with that of the first signals.
    """

    def __init__(self, plan: Plan, like: Tensor) -> None:
        self.plan = plan
        shape = (plan.batch_step + 1, plan.channel_step, plan.n)
        self._memory = torch.zeros(shape, dtype=plan.dtype, device=like.device)

    def load_kernel(self, kernel: Tensor, reverse_kernel: Tensor | None, channels: slice) -> None:
        row = self._memory[0, : channels.stop - channels.start]
        row[:, : kernel.shape[1]] = kernel[channels]
        if reverse_kernel is not None:
            row[:, self.plan.n - reverse_kernel.shape[1] :] = reverse_kernel[channels].flip(-1)

    def load(self, signal: Tensor, gate: Tensor | None, batch: slice, channels: slice) -> Tensor:
        """Write gate * signal; what was written, (b, c, L), stays valid until the next load."""
        block = self._block(batch, channels)[1:, :, : self.plan.length]
        block.copy_(compact(signal[batch, channels]))
        return block if gate is None else block.mul_(compact(gate[batch, channels]))

    def spectra(self, batch: slice, channels: slice, kernel_spectrum: Tensor | None) -> tuple[Tensor, Tensor]:
        """The kernel's spectrum (c, n/2 + 1), if it is not known yet, and those of the signals (b, c, n/2 + 1)."""
        block = self._block(batch, channels)
        if kernel_spectrum is not None:
            return kernel_spectrum, torch.fft.rfft(block[1:])
        both = torch.fft.rfft(block)
        return both[0], both[1:]

    def zeros(self, channels: slice) -> Tensor:
        """What sums over the batch start from, one number per channel."""
        return self._memory.new_zeros(channels.stop - channels.start)

    def _block(self, batch: slice, channels: slice) -> Tensor:
        return self._memory[: batch.stop - batch.start + 1, : channels.stop - channels.start]


def compact(block: Tensor) -> Tensor:
    """Bring a (B, L, H) signal's block close together first; one in whose memory time runs along stays as it is."""
    # Turned in place, every number would come from a cache line of its own. Writing into such a signal needs no detour.
    return block if block.stride(-1) == 1 else block.clone()
