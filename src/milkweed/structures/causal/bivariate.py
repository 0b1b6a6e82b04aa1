"""One variable per digit: no twiddle factors, and no carry from digit to digit."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import check_real
from milkweed.ops.backends import arranged_for_export, chosen_backend, lacks_float64
from milkweed.structures.causal.base import CausalBasis


@dataclasses.dataclass(frozen=True, eq=False)
class BivariateBasis(CausalBasis):
    """q_j(X, Y, ...) = f⁰_{j_0}(X) f¹_{j_0; j_1}(Y) ⋯ on a grid of 2 b_a roots of unity per digit, 2^p times n nodes.

    With identities the product is the causal convolution of the digits' grid: step t is reached from t - s where no
    digit of s is larger than that of t. Everything else is as in `KroneckerBasis`, but nothing carries.

    Source:
        Monarch Mixer (arXiv 2310.12109), appendix on causality with bivariate polynomials; more variables are this
        library's.

    Example:
        >>> factors = (torch.eye(2)[None], torch.eye(3).expand(1, 2, 3, 3))  # digits of 2 and 3 values, one head
        >>> basis = mw.structures.BivariateBasis(factors)
        >>> basis.length, basis.evaluate(torch.ones(1, 1, 6)).shape
        (6, torch.Size([1, 1, 24]))
    """

    def multiply(self, kernel: Tensor, u: Tensor) -> Tensor:
        """The coefficients of the product on the grid, in time's order.

        Within ``use_backend("float64")`` the transforms have its digits, as those of ``fft_conv`` have.

        Args:
            kernel: (H, L).
            u: (B, H, L).

        Returns:
            (B, H, L).

        Raises:
            ValueError: A shape does not fit, or float64 is asked for on a device that has none.
            TypeError: A tensor is not real floating point.
        """
        check_real(kernel=kernel, u=u)
        if u.ndim != 3 or not 1 <= u.shape[2] <= self.length or kernel.shape not in (u.shape[1:], u.shape):
            raise ValueError(
                f"kernel and u must be (H, L) and (B, H, L) with 1 <= L <= {self.length}; "
                f"got shapes {tuple(kernel.shape)} and {tuple(u.shape)}"
            )
        if arranged_for_export():
            return self._flattened(kernel, u)
        if u.shape[0] == 0:  # which not every FFT takes
            return u * kernel
        if chosen_backend() != "float64":
            return self._transformed(kernel, u)
        if (reason := lacks_float64(u)) is not None:
            raise ValueError(f"backend='float64' cannot run causal_product: {reason}")
        return self._transformed(kernel.double(), u.double()).to(u.dtype)

    def _flattened(self, kernel: Tensor, u: Tensor) -> Tensor:
        """The product as one long convolution, for programs whose runtimes have no FFT over several axes."""
        # With room for twice its values in every digit but the highest, nothing carries into the next one.
        batch, channels, length = u.shape
        rows = -(-length // math.prod(self.digits[:-1]))
        grid = (rows, *self.digits[-2::-1])
        room = [each for size in self.digits[:-1] for each in (0, size)]

        def spread(x: Tensor) -> Tensor:
            digits = F.pad(x, (0, math.prod(grid) - length)).unflatten(-1, grid)
            return F.pad(digits, room).flatten(-len(grid))

        if kernel.ndim == 2:
            product = ops.fft_conv(spread(u), spread(kernel))
        else:  # a kernel for every sequence: sequences are channels
            flat = spread(u).flatten(0, 1), spread(kernel).flatten(0, 1)
            product = ops.fft_conv(flat[0][None], flat[1]).unflatten(1, (batch, channels))[0]
        return _corner(product.unflatten(-1, (rows, *(2 * size for size in grid[1:]))), grid)[..., :length]

    def _transformed(self, kernel: Tensor, u: Tensor) -> Tensor:
        # Twice as many points on every axis as there are values: nothing carries from one digit into the next, nor
        # wraps.
        length = u.shape[-1]
        rows = -(-length // math.prod(self.digits[:-1]))
        grid = (rows, *self.digits[-2::-1])
        sizes, axes = [2 * size for size in grid], list(range(-len(grid), 0))

        def spectrum(x: Tensor) -> Tensor:
            return torch.fft.rfftn(F.pad(x, (0, math.prod(grid) - length)).unflatten(-1, grid), sizes, axes)

        product = torch.fft.irfftn(spectrum(u) * spectrum(kernel), sizes, axes)
        return _corner(product, grid)[..., :length]

    @override
    def _reached(self, marked: Tensor) -> Tensor:
        length, width = marked.shape[-1], math.prod(self.digits[:-1])
        grid = (-(-length // width), *self.digits[-2::-1])
        reached = F.pad(marked, (0, math.prod(grid) - length)).unflatten(-1, grid).int()
        for axis in range(-len(grid), 0):
            reached = reached.cummax(axis).values
        return reached.flatten(-len(grid))[..., :length].bool()

    def evaluate(self, x: Tensor) -> Tensor:
        """The values (B, H, 2^p n), complex, on the grid of roots of unity, the highest digit's variable outermost."""
        grid = self.digits[::-1]
        sizes, axes = [2 * size for size in grid], list(range(-len(grid), 0))
        return torch.fft.fftn(self.to_polynomial(x).unflatten(-1, grid), sizes, axes).flatten(2)

    @override
    def interpolate(self, values: Tensor) -> Tensor:
        self._check_values(values, 2 ** len(self.digits) * self.length)
        grid = self.digits[::-1]
        axes = list(range(-len(grid), 0))
        coefficients = torch.fft.ifftn(values.unflatten(-1, [2 * size for size in grid]), dim=axes).real
        return self.from_polynomial(_corner(coefficients, grid))


def _corner(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(..., *larger grid) to the values of the smaller one, flat."""
    for axis, size in enumerate(grid, x.ndim - len(grid)):
        x = x.narrow(axis, 0, size)
    return x.flatten(-len(grid))
