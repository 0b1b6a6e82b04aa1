"""Diagonal matrices."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from milkweed._registry import register
from milkweed.structures.base import StructuredMatrix, check_numbers


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Diagonal(StructuredMatrix):
    """Diagonal matrix.

    Args:
        entries: (n,).

    Example:
        >>> D = mw.structures.Diagonal(torch.tensor([1.0, 2.0, 4.0]))
        >>> D.solve(torch.ones(3)), D.slogdet()[1].exp()
        (tensor([1.0000, 0.5000, 0.2500]), tensor(8.))
    """

    entries: Tensor

    def __post_init__(self) -> None:
        check_numbers("entries", self.entries, 1)

    @property
    def _full_shape(self) -> tuple[int, int]:
        return (self.entries.shape[0],) * 2

    def _apply(self, x: Tensor) -> Tensor:
        return x * self.entries

    def _transpose(self) -> StructuredMatrix:
        return self

    def _flops(self) -> int:
        return self.entries.shape[0]

    def inverse(self) -> StructuredMatrix:
        """Invert every entry; ValueError where one is 0."""
        if not (self.entries.is_meta or torch.compiler.is_compiling()) and (self.entries == 0).any():
            raise ValueError("a diagonal matrix with an entry of 0 has no inverse")
        return Diagonal(self.entries.reciprocal())

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Multiply the entries."""
        return torch.sgn(self.entries).prod(), self.entries.abs().log().sum()
