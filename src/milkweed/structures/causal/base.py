"""What the causal constructions share: triangular blocks on the digits of time, and the product of polynomials."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import check_real, check_tensor
from milkweed.ops._common import compute_dtype, needs_plain_formula, without_autocast
from milkweed.ops._linalg import solve_lower
from milkweed.ops.backends import arranged_for_export
from milkweed.structures.base import check_numbers

MOST_DIGITS = 60
"""Digits of time: every one is an axis, of which tensors have 64."""


@dataclasses.dataclass(frozen=True, eq=False)
class CausalBasis(ABC):
    """A basis of polynomials, in which a causal sequence is a polynomial whose first steps are its end coefficients.

    Time has p digits, t = t_0 + b_0 t_1 + b_0 b_1 t_2 + ..., and n = b_0 ⋯ b_{p-1} steps. Basis element j is a product
    of p polynomials, one per digit; ``factors`` holds their coefficients, digit by digit. The map from a sequence to
    the plain coefficients of its polynomial, ``to_polynomial``, is lower triangular in time. The Monarch matrix M of
    the paper evaluates that polynomial at N nodes (``evaluate``); ``interpolate`` goes back.

    README.md beside this file has the derivation, and why the number of digits' values is the degree cap.

    Args:
        factors: One per digit, the lowest first: (heads, b_0, ..., b_{a-1}, b_a, b_a), lower triangular with a diagonal
            away from zero, one block for every value of the digits below. `triangular` makes such from free numbers.

    Raises:
        ValueError: The shapes do not follow from each other.
        TypeError: A factor is no real floating-point tensor.

    Example:
        >>> basis = mw.structures.KroneckerBasis((torch.eye(4)[None],))
        >>> isinstance(basis, mw.structures.CausalBasis), basis.digits, basis.length
        (True, (4,), 4)
    """

    factors: tuple[Tensor, ...]

    # Steps of the output basis before the first output.
    lead: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.factors, tuple) or not self.factors:
            raise TypeError(f"factors must be a tuple of tensors, one per digit; got {type(self.factors).__name__}")
        for index, factor in enumerate(self.factors):
            check_numbers(f"factors[{index}]", factor, index + 3)
            if factor.is_complex():
                raise TypeError(f"factors[{index}] must be real; got {factor.dtype}")
            expected = (self.heads, *self.digits[:index], factor.shape[-1], factor.shape[-1])
            if factor.shape != expected:
                raise ValueError(
                    f"factors[{index}] must be (heads, digits below, b, b) = {expected}; got {tuple(factor.shape)}"
                )

    @classmethod
    def for_output(cls, factors: tuple[Tensor, ...]) -> Self:
        """The basis M₀ that a product is read in, from factors of `output_digits`."""
        return cls(factors)

    @staticmethod
    def output_digits(digits: tuple[int, ...]) -> tuple[int, ...]:
        """The digits that M₀ needs, the lowest first, for sequences in bases M₁ and M₂ of these digits."""
        return digits

    @property
    def digits(self) -> tuple[int, ...]:
        """b_0, ..., b_{p-1}."""
        return tuple(factor.shape[-1] for factor in self.factors)

    @property
    def heads(self) -> int:
        """Groups of channels that share factors."""
        return self.factors[0].shape[0]

    @property
    def length(self) -> int:
        """n, the longest sequence."""
        return math.prod(self.digits)

    @property
    def flops(self) -> int:
        """Operations of ``to_polynomial`` per channel, a multiply-add as two: 2 n (b_0 + ... + b_{p-1})."""
        return 2 * self.length * sum(self.digits)

    # ------------------------------------------------------------------ sequences and polynomials

    def to_polynomial(self, x: Tensor) -> Tensor:
        """Coefficients of the polynomial whose basis coefficients are the sequence.

        Args:
            x: (B, H, L), L <= n, real; H is a multiple of ``heads``.

        Returns:
            (B, H, L), in time's order; element t depends on x up to t only.

        Raises:
            ValueError: A size does not fit.
            TypeError: The dtype is not the factors'.
        """
        basis = self._covering("x", x)
        return basis.causally(lambda x: basis._mixed(basis._on_digits(x, solve=False))[..., : x.shape[-1]], x)

    def from_polynomial(self, coefficients: Tensor) -> Tensor:
        """The inverse of ``to_polynomial``, by triangular solves.

        Args:
            coefficients: (B, H, L), L <= n.

        Returns:
            (B, H, L); element t depends on coefficients up to t only.

        Raises:
            ValueError: A size does not fit.
            TypeError: The dtype is not the factors'.
        """
        basis = self._covering("coefficients", coefficients)

        def solved(coefficients: Tensor) -> Tensor:
            length = coefficients.shape[-1]
            padded = F.pad(coefficients, (0, basis.length - length))
            return basis._on_digits(basis._unmixed(padded), solve=True)[..., :length]

        return basis.causally(solved, coefficients)

    @abstractmethod
    def multiply(self, kernel: Tensor, u: Tensor) -> Tensor:
        """The product of polynomials (H, L) and (B, H, L), in time's order, as far as L steps of the output need it."""

    def causally(self, function: Callable[..., Tensor], *sequences: Tensor) -> Tensor:
        """Apply a function in which no output sees the future, though it sums over zeros in the future's place.

        An infinity or NaN times such a zero would be NaN. So what is not finite is taken out before, and what depends
        on it is NaN after; except in an exported program, whose convolutions spread it anyway.

        Args:
            function: From the sequences to one of the shape of the largest.
            *sequences: (..., L) each.

        Returns:
            What the function returns.
        """
        if arranged_for_export() or all(_is_known_finite(x) for x in sequences):
            return function(*sequences)
        lost = functools.reduce(torch.logical_or, (self._reached(~x.isfinite()) for x in sequences))
        clean = (torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for x in sequences)
        return function(*clean).masked_fill(lost, torch.nan)

    # ------------------------------------------------------------------ the Monarch matrix

    @abstractmethod
    def evaluate(self, x: Tensor) -> Tensor:
        """M [x; 0]: the values (B, H, N) at the nodes of the polynomial of a sequence (B, H, n)."""

    @abstractmethod
    def interpolate(self, values: Tensor) -> Tensor:
        """[M⁻¹ values]_{0:n}: the sequence, from the values of a polynomial at the nodes.

        Args:
            values: (B, H, N).

        Returns:
            (B, H, n), real.

        Raises:
            ValueError: The number of nodes does not fit.
        """

    # ------------------------------------------------------------------ one step at a time

    def scale(self, row: int, position: int) -> float:
        """How much of the digits' own product a row's plain coefficient takes; 1 where powers multiply to powers."""
        return 1.0

    def echo(self, previous: Tensor) -> Tensor:
        """What a row's plain coefficients (B, H, W) take from the digits' own products (B, H, W) of the row before."""
        return torch.zeros_like(previous)

    # ------------------------------------------------------------------ mechanism

    def _mixed(self, x: Tensor) -> Tensor:
        """From products of the digits' polynomials to plain coefficients, (B, H, n) both."""
        return x

    def _unmixed(self, x: Tensor) -> Tensor:
        """The inverse of ``_mixed``."""
        return x

    def _reached(self, marked: Tensor) -> Tensor:
        """The steps of products that depend on any that are marked, (..., L) booleans both."""
        return marked.cumsum(-1, dtype=torch.int32) > 0

    def _covering(self, name: str, x: Tensor) -> Self:
        """The leading part of the basis that sequences of x's length need."""
        check_tensor(name, x)
        if x.ndim != 3 or x.shape[1] % self.heads or x.shape[2] > self.length:
            raise ValueError(
                f"{name}: a sequence must be (B, H, L) with H a multiple of heads={self.heads} and L <= {self.length}; "
                f"got shape {tuple(x.shape)}"
            )
        if x.dtype != self.factors[0].dtype:
            raise TypeError(f"{name}: a sequence must be {self.factors[0].dtype} as the factors are; got {x.dtype}")
        rows = max(1, -(-x.shape[2] // (self.length // self.digits[-1])))
        return self._leading(rows)

    def _check_values(self, values: Tensor, *nodes: int) -> None:
        """Refuse values at another number of nodes, of which other coefficients would be made."""
        check_tensor("values", values)
        if values.ndim != 3 or values.shape[-1] not in nodes:
            count = " or ".join(str(each) for each in dict.fromkeys(nodes))
            raise ValueError(f"values must be (B, H, N) at N = {count} nodes; got shape {tuple(values.shape)}")

    def _leading(self, rows: int) -> Self:
        """The basis for the first values of the highest digit."""
        *low, top = self.factors
        return dataclasses.replace(self, factors=(*low, top[..., :rows, :rows]))

    def _on_digits(self, x: Tensor, solve: bool) -> Tensor:
        """Apply the factors, the highest digit first, or undo them in the other order: (B, H, <= n) to (B, H, n)."""
        # Every block is one product with all that share it as columns. Time is laid out with the lowest digit first and
        # the columns last: no stage needs a copy then.
        batch, channels, length = x.shape
        digits, order = self.digits, len(self.digits)
        shared = channels // self.heads
        x = F.pad(x, (0, self.length - length)).reshape(batch, self.heads, shared, *digits[::-1])
        x = x.permute(1, *range(order + 2, 2, -1), 0, 2)
        for a in range(order) if solve else reversed(range(order)):
            blocks, size = self.heads * math.prod(digits[:a]), digits[a]
            columns = x.reshape(blocks, size, math.prod(digits[a + 1 :]) * batch * shared)
            factor = self.factors[a].reshape(blocks, size, size)
            x = solve_lower(factor, columns) if solve else factor @ columns
        # Out in the memory order (B, n, H), as layers have it.
        x = x.reshape(self.heads, *digits, batch, shared).permute(order + 1, *range(order, 0, -1), 0, order + 2)
        return x.reshape(batch, self.length, channels).transpose(1, 2)


def causal_product(
    kernel: Tensor, u: Tensor, *, output_basis: CausalBasis, kernel_basis: CausalBasis, input_basis: CausalBasis
) -> Tensor:
    """A product of sequences in which no output depends on the future: [M₀⁻¹(M₁[k; 0] ⊙ M₂[u; 0])]_{0:n}.

    It costs O(p N^{1 + 1/p}) for the three bases, which are shared by the channels of a head, and one convolution.
    Computed in float32 at least, whether or not autocast is on.

    Args:
        kernel: (H, L), k.
        u: (B, H, L), L at most the bases' length.
        output_basis: M₀, made by its class's ``for_output``.
        kernel_basis: M₁.
        input_basis: M₂.

    Returns:
        (B, H, L) in u's dtype.

    Raises:
        ValueError: A shape does not fit, or the bases are of different constructions or digits.
        TypeError: A tensor is not real floating point.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 4 and its appendix on causality, in the form that README.md derives:
        the evaluations and the interpolation cancel, except for the triangular parts around a convolution.

    Example:
        >>> plain = mw.structures.KroneckerBasis((torch.eye(4)[None],))  # the identity: an ordinary causal convolution
        >>> kernel, u = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        >>> y = mw.structures.causal_product(kernel, u, output_basis=plain, kernel_basis=plain, input_basis=plain)
        >>> y.round().int()
        tensor([[[1, 3, 5, 7]]], dtype=torch.int32)
    """
    _check_product(kernel, u, output_basis, kernel_basis, input_basis)
    dtype = compute_dtype(kernel, u, *output_basis.factors, *kernel_basis.factors, *input_basis.factors)
    kernel_basis, input_basis, output_basis = (_in(basis, dtype) for basis in (kernel_basis, input_basis, output_basis))

    def product(kernel: Tensor, u: Tensor) -> Tensor:
        k = kernel_basis.to_polynomial(kernel[None])[0]
        v = input_basis.to_polynomial(u)
        lead = output_basis.lead
        return output_basis.from_polynomial(F.pad(input_basis.multiply(k, v), (lead, 0)))[..., lead:]

    with without_autocast(u):
        return input_basis.causally(product, kernel.to(dtype), u.to(dtype)).to(u.dtype)


def triangular(free: Tensor) -> Tensor:
    """Make invertible lower-triangular blocks of free numbers, the identity of zeros.

    The diagonal is 2^tanh of what stands there: between ½ and 2. What stands above it has no effect.

    Args:
        free: (..., b, b).

    Returns:
        (..., b, b), in single precision at least.

    Raises:
        ValueError: The blocks are not square.
    """
    if free.ndim < 2 or free.shape[-1] != free.shape[-2]:
        raise ValueError(f"free must be (..., b, b), square blocks; got shape {tuple(free.shape)}")
    free = free.to(torch.promote_types(free.dtype, torch.float32))
    return free.tril(-1) + torch.diag_embed(free.diagonal(dim1=-2, dim2=-1).tanh().exp2())


def balanced_digits(size: int, order: int) -> tuple[int, ...]:
    """Split a size into digits as even as may be: the least work per step.

    Args:
        size: At least 1.
        order: How many digits.

    Returns:
        The smallest first; they multiply to at least ``size``.

    Raises:
        ValueError: The size or the order is below 1, or the order is above `MOST_DIGITS`.
    """
    if size < 1 or order < 1:
        raise ValueError(f"size and order must be at least 1; got size={size}, order={order}")
    if order > MOST_DIGITS:
        raise ValueError(f"order must be at most {MOST_DIGITS}, as every digit is an axis; got order={order}")
    digits = [math.ceil(size ** (1 / order))] * order
    if math.prod(digits) < size:  # the root was rounded
        digits = [digit + 1 for digit in digits]
    for index in range(order):
        while digits[index] > 1 and math.prod(digits) // digits[index] * (digits[index] - 1) >= size:
            digits[index] -= 1
    return tuple(sorted(digits))


def _is_known_finite(x: Tensor) -> bool:
    """Whether all numbers are finite and that can be seen at once, without waiting for a device or breaking a graph."""
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return False  # a compiler's tensor without numbers
    if x.device.type != "cpu" or torch.compiler.is_compiling() or needs_plain_formula(x) is not None:
        return False
    return math.isfinite(x.detach().sum().item())


def _in(basis: CausalBasis, dtype: torch.dtype) -> CausalBasis:
    return dataclasses.replace(basis, factors=tuple(factor.to(dtype) for factor in basis.factors))


def _check_product(kernel: Tensor, u: Tensor, output: CausalBasis, first: CausalBasis, second: CausalBasis) -> None:
    check_real(kernel=kernel, u=u)
    if u.ndim != 3 or u.shape[2] == 0:
        raise ValueError(f"u must be (B, H, L) with L >= 1; got shape {tuple(u.shape)}")
    if kernel.shape != u.shape[1:]:
        raise ValueError(f"kernel must be (H, L) = {tuple(u.shape[1:])} as u is; got shape {tuple(kernel.shape)}")
    if not type(output) is type(first) is type(second) or not isinstance(first, CausalBasis):
        kinds = ", ".join(type(basis).__name__ for basis in (output, first, second))
        raise ValueError(
            f"output_basis, kernel_basis and input_basis: the three bases must be of one construction; got {kinds}"
        )
    expected = first.output_digits(first.digits)
    if first.digits != second.digits or output.digits != expected:
        raise ValueError(
            f"kernel_basis and input_basis must have the same digits, and output_basis {expected} for them; got "
            f"{first.digits}, {second.digits} and {output.digits}"
        )
