"""The real construction: Chebyshev polynomials at Chebyshev nodes, with time running down the degrees."""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed import ops
from milkweed._arguments import whole
from milkweed.structures.causal.base import CausalBasis


@dataclasses.dataclass(frozen=True, eq=False)
class ChebyshevBasis(CausalBasis):
    """q_j(Z) = f⁰_{j_0}(Z) f¹_{j_0; j_1}(T_{b_0}(Z)) ⋯ in Chebyshev polynomials, evaluated at N = 2 n Chebyshev nodes.

    Step t of a sequence is the coefficient of the element of degree n - 1 - t, and step t of an output that of degree
    2 n - 2 - t: degrees only add up, so nothing comes from the future, without a cap and without complex numbers. The
    factors stand in time's order, lower triangular; reversed along every digit they are the upper-triangular L̃ and R̃.

    With identities the product is no plain convolution: T_i T_j = (T_{i+j} + T_{|i-j|}) / 2 leaves echoes of earlier
    steps, mirrored within a row of b_0 steps.

    Args:
        factors: As in `CausalBasis`.
        rows_below: Values of the highest digit, of lower degree than all that is here, which the basis has but no
            output depends on. Only M₀ has such.

    Source:
        Monarch Mixer (arXiv 2310.12109), appendix on causal maps over the reals; order p is this library's.

    Example:
        >>> basis = mw.structures.ChebyshevBasis((torch.eye(4)[None],))
        >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        >>> basis.evaluate(x).shape, torch.allclose(basis.interpolate(basis.evaluate(x)), x, atol=1e-4)
        (torch.Size([1, 1, 8]), True)
    """

    rows_below: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("rows_below", self.rows_below, 0)

    # The element of the odd top degree 2 n - 1 is never reached.
    lead = 1

    @classmethod
    def for_output(cls, factors: tuple[Tensor, ...]) -> Self:
        """The basis M₀ that a product is read in, of which the degrees from n - b_0 ⋯ b_{p-2} on are needed."""
        highest = cls(factors).factors[-1]
        return cls(factors, rows_below=highest.shape[-1] - 2)

    @staticmethod
    def output_digits(digits: tuple[int, ...]) -> tuple[int, ...]:
        """The digits that M₀ needs: one more value of the highest, which degree n - 1 falls into."""
        return (*digits[:-1], digits[-1] + 1)

    def multiply(self, kernel: Tensor, u: Tensor) -> Tensor:
        """The coefficients of degree 2 n - 2 - t in the product; step t of a factor is its degree n - 1 - t."""
        folded = ops.fft_conv(u, kernel)
        # Of the differences of degrees, |i - j|, only n - 1 is as high as an output: that of the last step.
        last = torch.arange(u.shape[-1], device=u.device) == self.length - 1
        ends = u * kernel[:, :1]
        if self.length > 1:
            ends = ends + u[..., :1] * kernel
        return (folded + ends * last) / 2

    def evaluate(self, x: Tensor) -> Tensor:
        """The values at cos(π (i + ½) / N), i = 0 .. N - 1.

        Args:
            x: (B, H, n).

        Returns:
            (B, H, 2 n), real.

        Raises:
            ValueError: The basis is that of an output.
        """
        if self.rows_below:
            raise ValueError(
                "a basis made by for_output cannot be evaluated, as it has only the degrees that an output depends on; "
                "evaluate the basis of the kernel or of the input"
            )
        # Σ_k c_k cos(π k (i + ½) / N) is the real part of an FFT of 2 N points, whose terms are turned by the half step
        # first.
        size = 2 * self.length
        coefficients = F.pad(self.to_polynomial(x).flip(-1), (0, self.length))
        return torch.fft.fft(coefficients * _quarter_turns(size, x), 2 * size)[..., :size].real

    def interpolate(self, values: Tensor) -> Tensor:
        """The sequence from its N = 2 n values; for the basis of an output N is that of the inputs."""
        rows = self.rows_below + self.digits[-1]
        self._check_values(values, 2 * self.length, rows * math.prod(self.digits[:-1]))
        size = values.shape[-1]
        sums = torch.fft.fft(values, 2 * size)[..., :size] * _quarter_turns(size, values)
        coefficients = sums.real * (2 / size)
        coefficients = torch.cat([coefficients[..., :1] / 2, coefficients[..., 1:]], -1)
        first = self.rows_below * math.prod(self.digits[:-1])
        return self.from_polynomial(coefficients[..., first : first + self.length].flip(-1))

    def scale(self, row: int, position: int) -> float:
        """How much of the digits' own product a plain coefficient takes: a half, or 1 where a factor is T_0."""
        last = position == math.prod(self.digits[:-1]) - 1
        return 1.0 if last or row == self.digits[-1] - 1 + self.rows_below else 0.5

    def echo(self, previous: Tensor) -> Tensor:
        """What a row's plain coefficients take from the row before: half of it, mirrored."""
        return F.pad(previous[..., :-1].flip(-1) / 2, (0, 1))

    # ------------------------------------------------------------------ products of Chebyshev polynomials

    def _leading(self, rows: int) -> Self:
        basis = super()._leading(rows)
        return dataclasses.replace(basis, rows_below=self.rows_below + self.digits[-1] - rows)

    def _mixed(self, x: Tensor) -> Tensor:
        # T_{w j} T_i = (T_{w j + i} + T_{w j - i}) / 2, unless j or i is 0, for the digits' products so far below w.
        for a in range(1, len(self.digits)):
            rows = self._rows(x, a)
            half = torch.where(self._is_degree_zero(a, x), 1.0, 0.5).to(x.dtype)
            own = torch.cat([rows[..., :-1] * half, rows[..., -1:]], -1)
            echo = rows[..., :-1, :-1].flip(-1) / 2
            x = (own + F.pad(echo, (0, 1, 1, 0))).flatten(2)
        return x

    def _unmixed(self, x: Tensor) -> Tensor:
        # Row by row c_t = 2 m_t - mirrored c_{t-1}: in a frame mirrored and negated in odd rows, a running sum.
        for a in reversed(range(1, len(self.digits))):
            rows = self._rows(x, a)
            half = torch.where(self._is_degree_zero(a, x), 1.0, 2.0).to(x.dtype)
            odd = torch.arange(rows.shape[-2], device=x.device)[:, None] % 2 == 1
            sums = _mirrored(_mirrored(rows[..., :-1], odd).cumsum(-2), odd)
            x = torch.cat([sums * half, rows[..., -1:]], -1).flatten(2)
        return x

    def _rows(self, x: Tensor, a: int) -> Tensor:
        """(B, H, n) as (B, H, higher digits, b_a, all lower digits)."""
        return x.unflatten(-1, (math.prod(self.digits[a + 1 :]), self.digits[a], math.prod(self.digits[:a])))

    def _is_degree_zero(self, a: int, x: Tensor) -> Tensor:
        """(b_a, 1): whether digit a stands for T_0, which is its last value in time."""
        below = self.rows_below if a == len(self.digits) - 1 else 0
        degree = torch.arange(self.digits[a] - 1 + below, below - 1, -1, device=x.device)
        return (degree == 0)[:, None]


def _mirrored(x: Tensor, odd: Tensor) -> Tensor:
    return torch.where(odd, -x.flip(-1), x)


def _quarter_turns(size: int, like: Tensor) -> Tensor:
    """exp(-πi m / (2 N)) for m = 0 .. N - 1."""
    angle = torch.arange(size, device=like.device, dtype=like.dtype) * (-math.pi / (2 * size))
    return torch.complex(angle.cos(), angle.sin())
