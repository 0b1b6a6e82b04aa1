"""Circulant and Toeplitz matrices, applied by FFT."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import check_tensor
from milkweed._registry import register
from milkweed.structures.base import StructuredMatrix, check_numbers


def _precise(tensor: Tensor) -> torch.dtype:
    """The dtype of the FFTs: half precision has none on CPUs."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _circular(column: Tensor, x: Tensor) -> Tensor:
    """Circular convolution along the last dimension, in x's dtype."""
    n, dtype = column.shape[-1], _precise(x)
    if x.numel() == 0:  # MKL's FFT refuses an empty batch; gradients reach both factors all the same
        return (F.pad(x, (0, n - x.shape[-1])) * column).to(x.dtype)
    if dtype.is_complex:
        return torch.fft.ifft(torch.fft.fft(column.to(dtype)) * torch.fft.fft(x.to(dtype), n)).to(x.dtype)
    return torch.fft.irfft(torch.fft.rfft(column.to(dtype)) * torch.fft.rfft(x.to(dtype), n), n).to(x.dtype)


def _fft_flops(n: int) -> int:
    return round(10 * n * math.log2(max(n, 2))) + 6 * n


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Circulant(StructuredMatrix):
    """Circular convolution: C[i, j] = column[(i - j) mod n].

    Args:
        column: (n,), the first column.

    Example:
        >>> C = mw.structures.Circulant(torch.tensor([1.0, 2.0, 3.0]))
        >>> C.to_dense()
        tensor([[1., 3., 2.],
                [2., 1., 3.],
                [3., 2., 1.]])
    """

    column: Tensor

    def __post_init__(self) -> None:
        check_numbers("column", self.column, 1)

    @property
    def _full_shape(self) -> tuple[int, int]:
        return (self.column.shape[0],) * 2

    def _apply(self, x: Tensor) -> Tensor:
        return _circular(self.column, x)

    def _transpose(self) -> StructuredMatrix:
        return Circulant(self.column.flip(0).roll(1))

    def _flops(self) -> int:
        return _fft_flops(self.column.shape[0])

    def eigenvalues(self) -> Tensor:
        """The discrete Fourier transform of the first column: (n,) complex."""
        return torch.fft.fft(self.column.to(_precise(self.column)))

    def inverse(self) -> StructuredMatrix:
        """Invert the eigenvalues, which gives a circulant matrix."""
        inverse = torch.fft.ifft(self.eigenvalues().reciprocal())
        return Circulant((inverse if self.column.is_complex() else inverse.real).to(self.column.dtype))

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Multiply the eigenvalues."""
        eigenvalues = self.eigenvalues()
        sign = torch.sgn(eigenvalues).prod()
        return sign if self.column.is_complex() else sign.real.sign(), eigenvalues.abs().log().sum()


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Toeplitz(StructuredMatrix):
    """Constant along its diagonals: T[i, j] = column[i - j] for i ≥ j, row[j - i - 1] above.

    Args:
        column: (m,), the first column.
        row: (n - 1,), the first row from its second entry on.

    Example:
        >>> T = mw.structures.Toeplitz(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, -2.0]))
        >>> T.to_dense()
        tensor([[ 1.0000, -1.0000, -2.0000],
                [ 2.0000,  1.0000, -1.0000],
                [ 3.0000,  2.0000,  1.0000]])
    """

    column: Tensor
    row: Tensor

    def __post_init__(self) -> None:
        check_numbers("column", self.column, 1)
        check_tensor("row", self.row)
        if self.row.numel():
            check_numbers("row", self.row, 1)
        elif self.row.ndim != 1:
            raise ValueError(f"row must have 1 dimension; got shape {tuple(self.row.shape)}")
        if self.column.dtype != self.row.dtype:
            raise TypeError(f"column and row must have one dtype; got {self.column.dtype} and {self.row.dtype}")

    @property
    def _full_shape(self) -> tuple[int, int]:
        return self.column.shape[0], self.row.shape[0] + 1

    def embedding(self) -> Circulant:
        """The smallest circulant matrix of even size, m + n or m + n - 1, whose top-left part this is."""
        m, n = self.shape
        gap = self.column.new_zeros((m + n - 1) % 2)
        return Circulant(torch.cat([self.column, gap, self.row.flip(0)]))

    def _apply(self, x: Tensor) -> Tensor:
        return _circular(self.embedding().column, x)[..., : self.column.shape[0]]

    def _transpose(self) -> StructuredMatrix:
        return Toeplitz(torch.cat([self.column[:1], self.row]), self.column[1:])

    def _flops(self) -> int:
        return _fft_flops(sum(self.shape))
