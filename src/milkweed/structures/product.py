"""Products and sums of structures."""

from __future__ import annotations

import dataclasses
import functools
from functools import reduce

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.structures.base import StructuredMatrix, check_crop


def _check_parts(name: str, parts: tuple[StructuredMatrix, ...]) -> None:
    if not isinstance(parts, tuple) or not parts or not all(isinstance(part, StructuredMatrix) for part in parts):
        raise TypeError(f"{name} must be a tuple of structures, at least one; got {parts!r}")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Product(StructuredMatrix):
    """A product of structures, such as M₁ M₂* or, cropped, the classes (MM*)^w_e of the Monarch paper.

    Args:
        factors: From left to right: the last is applied first.
        crop: (rows, columns) kept from the top left of the product; all by default.

    Source:
        Monarch (arXiv 2204.00595), section 3.2 and its appendix on (MM*)^w_e: w-fold products of size e n whose
        top-left n × n part is kept.
    """

    factors: tuple[StructuredMatrix, ...]
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_parts("factors", self.factors)
        for left, right in zip(self.factors, self.factors[1:], strict=False):
            if left.shape[1] != right.shape[0]:
                raise ValueError(f"factors must fit: {left!r} cannot be multiplied by {right!r}")
        check_crop(self.crop, self._full_shape)

    @staticmethod
    @checked
    def of(*matrices: StructuredMatrix) -> Product:
        """Multiply structures, taking the factors of products that are not cropped.

        Args:
            *matrices: From left to right.

        Returns:
            One flat product.
        """
        flat: list[StructuredMatrix] = []
        for matrix in matrices:
            whole = isinstance(matrix, Product) and matrix.crop is None
            flat.extend(matrix.factors if whole else (matrix,))  # type: ignore[attr-defined]
        return Product(tuple(flat))

    @functools.cached_property
    def _full_shape(self) -> tuple[int, int]:
        # Kept: asking both ends anew at every level of nested products would take exponential time.
        return self.factors[0].shape[0], self.factors[-1].shape[1]

    def _apply(self, x: Tensor) -> Tensor:
        return reduce(lambda value, factor: factor(value), reversed(self.factors), x)

    def _transpose(self) -> StructuredMatrix:
        return Product(tuple(factor.T for factor in reversed(self.factors)))

    def _flops(self) -> int:
        return sum(factor.flops() for factor in self.factors)

    def _in_dtype(self, dtype: torch.dtype) -> StructuredMatrix:
        return self  # every factor promotes for itself

    def inverse(self) -> StructuredMatrix:
        """Invert every factor.

        Returns:
            The product of the inverses in reverse order.
        """
        self._check_invertible()
        return Product(tuple(factor.inverse() for factor in reversed(self.factors)))

    def _solve(self, y: Tensor) -> Tensor:
        self._check_invertible()
        return reduce(lambda value, factor: factor._solve(value), self.factors, y)

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Product of the factors' determinants.

        Returns:
            Two scalars, as `torch.linalg.slogdet`.
        """
        self._check_invertible()
        signs, logarithms = zip(*(factor.slogdet() for factor in self.factors), strict=True)
        return reduce(torch.mul, signs), reduce(torch.add, logarithms)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sum(StructuredMatrix):
    """A sum of structures, such as flat block butterfly plus low rank (Pixelfly).

    Args:
        terms: Structures of one shape.
    """

    terms: tuple[StructuredMatrix, ...]

    def __post_init__(self) -> None:
        _check_parts("terms", self.terms)
        for term in self.terms[1:]:
            if term.shape != self.terms[0].shape:
                raise ValueError(f"terms must have one shape; got {self.terms[0]!r} and {term!r}")

    @staticmethod
    @checked
    def of(*matrices: StructuredMatrix) -> Sum:
        """Add structures, taking the terms of sums.

        Args:
            *matrices: Structures of one shape.

        Returns:
            One flat sum.
        """
        flat: list[StructuredMatrix] = []
        for matrix in matrices:
            flat.extend(matrix.terms if isinstance(matrix, Sum) else (matrix,))
        return Sum(tuple(flat))

    @property
    def _full_shape(self) -> tuple[int, int]:
        return self.terms[0].shape

    def _apply(self, x: Tensor) -> Tensor:
        return reduce(torch.add, (term(x) for term in self.terms))

    def _transpose(self) -> StructuredMatrix:
        return Sum(tuple(term.T for term in self.terms))

    def _flops(self) -> int:
        return sum(term.flops() for term in self.terms) + (len(self.terms) - 1) * self.shape[0]

    def _in_dtype(self, dtype: torch.dtype) -> StructuredMatrix:
        return self  # every term promotes for itself
