"""Long convolution in real matrix products, for programs that other runtimes run: few of them have a fast FFT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from milkweed.ops._common import compute_dtype, without_autocast
from milkweed.ops._export import balanced, cos_sin, first, largest, pieces

# Columns of a transform whose length is not known when the program is made.
_USUAL_COLUMNS = 32


def _columns(length: int) -> int:
    """Columns that make both products of a transform about equally long."""
    most = largest(length)
    if most is None:
        return _USUAL_COLUMNS
    known = isinstance(length, int)
    return balanced(most // 2, 8, 512 if known else 2 * _USUAL_COLUMNS)


class _Transform:
    """A Fourier transform of real signals as a Monarch matrix: two products with small matrices of real numbers.

    Point n = n1 * columns + n2 of N = rows * columns goes through a transform over n1, turns by n2 k1 / N, and a
    transform over n2; frequency k1 + rows * k2 comes out. That of -k1 is the conjugate, so k1 <= rows / 2 are enough.
    Signals fill the first ``filled`` rows, zeros follow.
    """

    # Sizes may be symbols: the matrices are then made when the program runs, which costs little beside the products.

    def __init__(self, rows: int, columns: int, filled: int, like: Tensor, dtype: torch.dtype) -> None:
        self.rows, self.columns, self.filled = rows, columns, filled
        self.half = rows // 2 + 1
        self.k1 = torch.arange(self.half, device=like.device)[:, None]
        n1 = torch.arange(filled, device=like.device)
        n2 = torch.arange(columns, device=like.device)
        cos, sin = cos_sin(self.k1, n1, rows, dtype)
        self.into = torch.cat([cos, -sin])
        # Both halves of the frequencies; the first and the last k1 are their own conjugates.
        ends = (self.k1 == 0) | (self.k1 == self.half - 1)
        weight = torch.where(ends, 1.0, 2.0).to(dtype) / (rows * columns)
        self.out_of = torch.cat([weight * cos, -weight * sin]).T
        self.turn = cos_sin(self.k1, n2, rows * columns, dtype)
        cos, sin = cos_sin(n2[:, None], n2, columns, dtype)
        # [re, im] times this is the transform; its transpose is the inverse.
        self.across = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])

    def spectrum(self, x: Tensor) -> Tensor:
        """(H, filled * columns) or less, or (B, H, ...), to (..., k1, 2 * columns), real parts first."""
        lead = x.shape[:-1]
        x = F.pad(x if x.ndim == 2 else x.flatten(0, 1), (0, self.filled * self.columns - x.shape[-1]))
        turned = self.into @ x.unflatten(-1, (self.filled, self.columns))
        re, im = turned[:, : self.half], turned[:, self.half :]
        cos, sin = self.turn
        across = torch.cat([re * cos + im * sin, im * cos - re * sin], -1) @ self.across
        return across if len(lead) == 1 else across.unflatten(0, lead)

    def signal(self, spectrum: Tensor) -> Tensor:
        """The filled points again, (..., filled * columns)."""
        re, im = (spectrum @ self.across.T).split(self.columns, -1)
        cos, sin = self.turn
        turned = torch.cat([re * cos - im * sin, im * cos + re * sin], -2)
        return (self.out_of @ turned).flatten(-2)

    def later(self) -> Tensor:
        """What the spectrum of a signal takes if it stands half of all points later: (k1, 1)."""
        return (1 - 2 * (self.k1 % 2)).to(self.across.dtype)

    def layout(self, spectrum: Tensor) -> Tensor:
        """A spectrum (H, F, 2) of the lowest frequencies, zero from there on, in the order of this transform."""
        points = self.rows * self.columns
        frequency = self.k1 + self.rows * torch.arange(self.columns, device=spectrum.device)
        mirrored = frequency > points // 2
        frequency = torch.where(mirrored, points - frequency, frequency)
        kept = F.pad(spectrum.to(self.across.dtype), (0, 0, 0, 1))
        index = frequency.clamp_max(spectrum.shape[1]).flatten()
        re, im = kept.index_select(1, index).unflatten(1, frequency.shape).unbind(-1)
        return torch.cat([re, torch.where(mirrored, -im, im)], -1)


def _product(a: Tensor, b: Tensor, columns: int) -> Tensor:
    """Product of spectra (..., k1, 2 * columns)."""
    (a_re, a_im), (b_re, b_im) = a.split(columns, -1), b.split(columns, -1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], -1)


def _convolve(
    transform: _Transform,
    kernel: Tensor,
    u: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    dtype = kernel.dtype
    v = u.to(dtype) if pre_gate is None else pre_gate.to(dtype) * u.to(dtype)
    y = first(transform.signal(_product(transform.spectrum(v), kernel, transform.columns)), u.shape[-1])
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * v
    if post_gate is not None:
        y = post_gate.to(dtype) * y
    return y.to(u.dtype)


def fft_conv(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None = None,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """Convolve (B, H, L) signals; the arguments are those of `milkweed.ops.fft_conv`."""
    dtype = compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    length = u.shape[-1]
    columns = _columns(length)
    filled = pieces(length, columns)
    with without_autocast(u):
        transform = _Transform(2 * filled, columns, filled, u, dtype)
        spectrum = transform.spectrum(kernel.to(dtype))
        if reverse_kernel is not None:
            # Lag -1 is the last point, lag -2 the one before it, and so on down from the end.
            points = filled * columns
            ends = F.pad(reverse_kernel.to(dtype), (0, points - reverse_kernel.shape[-1])).flip(-1)
            spectrum = spectrum + transform.later() * transform.spectrum(ends)
        return _convolve(transform, spectrum, u, skip, pre_gate, post_gate)


def frozen_conv(
    u: Tensor,
    spectrum: Tensor,
    points: int,
    length: int,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """Convolve with a kernel whose spectrum is known, at the cost of the longest signal, ``length``."""
    dtype = compute_dtype(u, spectrum, skip, pre_gate, post_gate)
    columns = balanced(points // 4, 8, 512)
    with without_autocast(u):
        filled = (length + columns - 1) // columns
        transform = _Transform(points // columns, columns, filled, u, dtype)
        return _convolve(transform, transform.layout(spectrum), u, skip, pre_gate, post_gate)
