"""Chains of block-diagonal factors between digit permutations; the butterfly is one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from milkweed import ops
from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.structures.base import Expandable, Product, check_crop, check_numbers
from milkweed.structures.block_diagonal import BlockDiagonal
from milkweed.structures.permutation import Permutation


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Chain(Expandable):
    """Order-p Monarch matrix: p block-diagonal factors, each on one digit of the index.

    A size N = b_1 ⋯ b_p is read as digits, b_1 the most significant. The first factor acts on the last digit, one block
    for every value of the others; its result is transposed, which brings the next digit to the end; after p factors the
    digits stand in their first order. Uneven digits (768 = 8 · 8 · 12) and rectangular blocks (N differs from factor to
    factor) are allowed.

    Args:
        factors: In the order in which they are applied; factor t is (k, q, p), and k p of the next is k q of this one.
        crop: (rows, columns) kept from the top left; all by default.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 3 (order-p Monarch); Dao et al., Learning fast algorithms using
        butterfly factorizations (arXiv 1903.05895), for digits of 2.

    Example:
        >>> W = mw.structures.Chain(tuple(torch.randn(4, 2, 2) for _ in range(3)))  # a butterfly of 8 × 8
        >>> W.shape, W.num_parameters
        ((8, 8), 48)
    """

    factors: tuple[Tensor, ...]
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.factors, tuple) or not self.factors:
            raise TypeError(f"factors must be a tuple of tensors, at least one; got {type(self.factors).__name__}")
        for index, factor in enumerate(self.factors):
            check_numbers(f"factors[{index}]", factor, 3)
        for index, (first, second) in enumerate(zip(self.factors, self.factors[1:], strict=False)):
            given, taken = first.shape[0] * first.shape[1], second.shape[0] * second.shape[2]
            if given != taken:
                raise ValueError(
                    f"factors[{index + 1}] (k, q, p) = {tuple(second.shape)} must take what factors[{index}] = "
                    f"{tuple(first.shape)} gives: k * p = {taken}, k * q = {given}"
                )
        check_crop(self.crop, self._full_shape)

    @staticmethod
    @checked
    def identity(
        digits: Sequence[int], dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Chain:
        """The identity as a chain, to be trained away from or to copy the shapes of.

        Args:
            digits: b_1, ..., b_p, the most significant first.
            dtype: Of the factors.
            device: Where they live.

        Returns:
            A chain of size b_1 ⋯ b_p.

        Raises:
            ValueError: There is no digit, or one is below 1.
        """
        if not digits or min(digits) < 1:
            raise ValueError(f"digits must be positive, at least one; got {tuple(digits)}")
        size = math.prod(digits)
        blocks = (torch.eye(b, dtype=dtype, device=device).repeat(size // b, 1, 1) for b in reversed(digits))
        return Chain(tuple(blocks))

    @property
    def _full_shape(self) -> tuple[int, int]:
        first, last = self.factors[0].shape, self.factors[-1].shape
        return last[0] * last[1], first[0] * first[2]

    def expand(self) -> Product:
        """Write the chain as block-diagonal matrices and permutations, two factors for each of the chain's."""
        pairs = (
            (Permutation.stride(factor.shape[0], factor.shape[1], device=factor.device), BlockDiagonal(factor))
            for factor in reversed(self.factors)
        )
        return Product(tuple(part for pair in pairs for part in pair), self.crop)

    def _apply(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            y = ops.block_diagonal_mm(x, factor)
            x = y.unflatten(-1, factor.shape[:2]).mT.flatten(-2)
        return x
