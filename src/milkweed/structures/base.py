"""What every structured matrix offers, on top of four primitives that each defines; products and sums of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from milkweed._arguments import check_kind, check_tensor, checked, is_kind
from milkweed._registry import register, requires

# The dtype of a matrix without numbers, such as a permutation: promoting it with any other gives the other.
NEUTRAL = torch.bool


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StructuredMatrix(ABC):
    """An m × n matrix stored by few numbers, real or complex.

    A structure is an immutable dataclass; its fields are tensors, other structures or plain values, so copying,
    pickling and conversion need no code of its own. Everything is differentiable with respect to the tensors. A
    structure with a ``crop`` field is the top-left part of a larger one: inputs are padded with zeros, outputs cut.

    A subclass defines ``_full_shape``, ``_apply``, ``_transpose`` and ``_flops``; ``inverse`` and ``slogdet`` if they
    are cheap. Files know those that `milkweed.register` gave a name.

    Example:
        >>> W = mw.monarch_hadamard(4)
        >>> isinstance(W, mw.structures.StructuredMatrix), (W.T @ W).to_dense().diagonal()
        (True, tensor([4., 4., 4., 4.]))
    """

    @property
    @abstractmethod
    def _full_shape(self) -> tuple[int, int]:
        """(rows, columns) before cropping."""

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """W x for every vector x (..., columns) of W's own dtype, before cropping: (..., rows)."""

    @abstractmethod
    def _transpose(self) -> StructuredMatrix:
        """The transposed matrix before cropping; of a class with a ``crop`` field if this class has one."""

    @abstractmethod
    def _flops(self) -> int:
        """Operations per vector, a multiply-add counted as two."""

    # Numpy's arrays then leave products to the methods below, which name what they cannot take.
    __array_ufunc__: ClassVar[None] = None

    # ------------------------------------------------------------------ what it is

    @property
    def shape(self) -> tuple[int, int]:
        """(rows m, columns n)."""
        crop: tuple[int, int] | None = getattr(self, "crop", None)
        return self._full_shape if crop is None else crop

    @property
    def dtype(self) -> torch.dtype:
        """The common dtype of the numbers; ``torch.bool`` where there are none (permutations)."""
        numbers = [t.dtype for _, t in self.named_tensors() if _holds_numbers(t)]
        return reduce(torch.promote_types, numbers, NEUTRAL)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return next(tensor.device for _, tensor in self.named_tensors())

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Walk over the tensors that make the matrix.

        Args:
            prefix: Put before each name.

        Yields:
            Dotted names, such as ``factors.0.right``, and tensors.
        """
        if type(prefix) is not str:
            check_kind(str, prefix=prefix)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            several = isinstance(value, tuple)
            for index, part in enumerate(value if several else (value,)):
                name = f"{prefix}{field.name}.{index}" if several else f"{prefix}{field.name}"
                if isinstance(part, Tensor):
                    yield name, part
                elif isinstance(part, StructuredMatrix):
                    yield from part.named_tensors(name + ".")

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored; a complex one counts as one, positions do not count."""
        return sum(tensor.numel() for _, tensor in self.named_tensors() if _holds_numbers(tensor))

    @checked
    def flops(self, batch: int = 1) -> int:
        """Count the operations of multiplying a batch of vectors, a multiply-add as two.

        Args:
            batch: Vectors.

        Returns:
            The number; of complex operations for a complex matrix. Permutations are free, an FFT of length n counts
            5 n log2 n.
        """
        return batch * self._flops()

    def __repr__(self) -> str:
        m, n = self.shape
        kind = "" if self.dtype == NEUTRAL else f", {str(self.dtype).removeprefix('torch.')}"
        return f"{type(self).__name__}({m} × {n}{kind}, {self.num_parameters:,} parameters)"

    # ------------------------------------------------------------------ products

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply every vector in the last dimension, as a linear layer does.

        Args:
            x: (..., n).

        Returns:
            (..., m) in the promoted dtype of both.

        Raises:
            ValueError: The last dimension is not n.
        """
        check_tensor("x", x)
        m, n = self.shape
        if x.ndim == 0 or x.shape[-1] != n:
            raise ValueError(f"x must be (..., {n}) for a {m} × {n} {type(self).__name__}; got shape {tuple(x.shape)}")
        dtype = torch.promote_types(x.dtype, self.dtype)
        x = x.to(dtype)
        missing = self._full_shape[1] - n
        return self._in_dtype(dtype)._apply(F.pad(x, (0, missing)) if missing else x)[..., :m]

    def __matmul__(self, other: Any) -> Any:
        """The product with a vector (n,), with matrices (..., n, b), or with another structure (a ``Product``)."""
        if isinstance(other, StructuredMatrix):
            return Product.of(self, other)
        if not isinstance(other, Tensor):
            if hasattr(other, "__array__"):
                check_tensor("x", other)
            return NotImplemented
        if other.ndim < 2:
            return self(other)
        if other.shape[-2] != self.shape[1]:
            raise ValueError(f"{self!r} @ x needs x (..., {self.shape[1]}, b); got shape {tuple(other.shape)}")
        return self(other.mT).mT

    def __rmatmul__(self, other: Any) -> Any:
        """X @ W for a tensor x (..., m): (..., n)."""
        if hasattr(other, "__array__"):
            check_tensor("x", other)
        return self.T(other) if isinstance(other, Tensor) else NotImplemented

    def __add__(self, other: Any) -> Any:
        """The sum with another structure."""
        return Sum.of(self, other) if isinstance(other, StructuredMatrix) else NotImplemented

    def to_dense(self) -> Tensor:
        """Multiply everything out: (m, n); a permutation comes in torch's default dtype."""
        dtype = torch.get_default_dtype() if self.dtype == NEUTRAL else self.dtype
        return self(torch.eye(self.shape[1], dtype=dtype, device=self.device)).mT

    # ------------------------------------------------------------------ other matrices from this one

    @property
    def T(self) -> StructuredMatrix:  # noqa: N802 - as in torch and numpy
        """The transposed matrix."""
        transposed = self._transpose()
        crop: tuple[int, int] | None = getattr(self, "crop", None)
        return transposed if crop is None else dataclasses.replace(transposed, crop=crop[::-1])  # type: ignore[call-arg]

    @property
    def H(self) -> StructuredMatrix:  # noqa: N802 - as in torch
        """The conjugate transpose."""
        return self.T.conj()

    def conj(self) -> Self:
        """Conjugate every entry; the structure stays the same."""
        return self._map(lambda tensor: tensor.conj().resolve_conj())

    @checked
    def to(self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the tensors, or change the precision of the numbers.

        Args:
            device: Where to; or a dtype, as ``Tensor.to`` takes it.
            dtype: Floating-point or complex; positions keep theirs.

        Returns:
            A matrix of the same structure.

        Raises:
            TypeError: A complex matrix was to become real, or the dtype is an integer one.
        """
        if isinstance(device, torch.dtype):  # as Tensor.to takes it
            device, dtype = None, device
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"dtype must be floating point or complex; got {dtype}")
        if dtype is not None and self.dtype.is_complex and not dtype.is_complex:
            raise TypeError(f"{self!r} would lose its imaginary part as {dtype}; use a complex dtype")
        return self._map(lambda t: t.to(device=device, dtype=dtype if _holds_numbers(t) else None))

    def detach(self) -> Self:
        """Cut the tensors from their history, in a matrix of the same structure that shares its memory."""
        return self._map(torch.Tensor.detach)

    # ------------------------------------------------------------------ systems of equations

    def inverse(self) -> StructuredMatrix:
        """Invert the matrix, which gives a structure, where the structure makes that cheap.

        Raises:
            TypeError: It is not cheap.
            ValueError: The matrix is not square.
        """
        raise TypeError(f"{type(self).__name__} has no cheap inverse; use torch.linalg.inv(matrix.to_dense())")

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Sign (or phase) and logarithm of the determinant's absolute value, two scalars, where that is cheap.

        Raises:
            TypeError: It is not cheap.
            ValueError: The matrix is not square.
        """
        raise TypeError(f"{type(self).__name__} has no cheap determinant; use torch.linalg.slogdet(matrix.to_dense())")

    def logdet(self) -> Tensor:
        """Logarithm of the determinant, a scalar; NaN for a real matrix with a negative one, as `torch.logdet`."""
        sign, logarithm = self.slogdet()
        return logarithm + sign.log()

    def solve(self, b: Tensor) -> Tensor:
        """Find x with W x = b, where the structure makes that cheap.

        Args:
            b: A vector (m,) or matrices (..., m, columns).

        Returns:
            x, of b's shape.

        Raises:
            ValueError: ``b`` has another size, or the matrix no cheap inverse.
        """
        check_tensor("b", b)
        rows = self.shape[0]
        if b.ndim == 0 or b.shape[max(-2, -b.ndim)] != rows:
            raise ValueError(f"b must be ({rows},) or (..., {rows}, columns); got shape {tuple(b.shape)}")
        if b.ndim < 2:
            return self._solve(b)
        return self._solve(b.mT).mT

    def _solve(self, y: Tensor) -> Tensor:
        return self.inverse()(y)

    def _check_invertible(self) -> None:
        if getattr(self, "crop", None) not in {None, self._full_shape} or self.shape[0] != self.shape[1]:
            cropped = "" if getattr(self, "crop", None) in {None, self._full_shape} else ", padded inside"
            raise ValueError(
                "only a square matrix whose blocks are not padded can be inverted as a structure; "
                f"got {self!r}{cropped}; use matrix.to_dense()"
            )

    # ------------------------------------------------------------------ mechanism

    def _in_dtype(self, dtype: torch.dtype) -> StructuredMatrix:
        if self.dtype in {dtype, NEUTRAL}:
            return self
        return self._map(lambda tensor: tensor.to(dtype) if _holds_numbers(tensor) else tensor)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same structure with every tensor replaced."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, StructuredMatrix):
                return value._map(function)
            return tuple(changed(part) for part in value) if isinstance(value, tuple) else value

        fields = dataclasses.fields(self)
        return type(self)(**{field.name: changed(getattr(self, field.name)) for field in fields})


def _check_class(cls: type, name: str) -> None:
    if not issubclass(cls, StructuredMatrix):
        raise TypeError(f"structure {name!r} must be a subclass of milkweed.structures.StructuredMatrix; got {cls!r}")
    if inspect.get_annotations(cls) and "__dataclass_params__" not in vars(cls):
        raise TypeError(
            f"structure {name!r}: {cls.__name__} must be a dataclass; put "
            "@dataclasses.dataclass(frozen=True, eq=False, repr=False) between @milkweed.register and the class"
        )


requires("structure", _check_class)


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def check_numbers(name: str, tensor: Tensor, ndim: int) -> None:
    """Refuse a tensor that cannot be part of a matrix, or has not ``ndim`` dimensions."""
    if not isinstance(tensor, Tensor) or not _holds_numbers(tensor):
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point or complex tensor; got {kind}")
    if tensor.itemsize == 1:  # torch only stores such numbers
        raise TypeError(f"{name} must have numbers that can be multiplied; got {tensor.dtype}; use .bfloat16()")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a strided tensor; got layout {tensor.layout}; use .to_dense()")
    if tensor.ndim != ndim or 0 in tensor.shape:
        raise ValueError(f"{name} must have {ndim} dimensions, none of size 0; got shape {tuple(tensor.shape)}")


def check_crop(crop: tuple[int, int] | None, full: tuple[int, int]) -> None:
    """Refuse a crop (rows, columns) that is not a part of the ``full`` matrix."""
    whole = isinstance(crop, tuple | list) and all(type(size) is int or is_kind(size, int) for size in crop)
    if crop is not None and not (whole and len(crop) == 2 and 1 <= crop[0] <= full[0] and 1 <= crop[1] <= full[1]):
        raise ValueError(f"crop must be (rows, columns) within {full}; got {crop}")


def _check_parts(name: str, parts: tuple[StructuredMatrix, ...]) -> None:
    if not isinstance(parts, tuple) or not parts or not all(isinstance(part, StructuredMatrix) for part in parts):
        raise TypeError(f"{name} must be a tuple of structures, at least one; got {parts!r}")


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Product(StructuredMatrix):
    """A product of structures, such as M₁ M₂* or, cropped, the classes (MM*)^w_e of the Monarch paper.

    Args:
        factors: From left to right: the last is applied first.
        crop: (rows, columns) kept from the top left of the product; all by default.

    Source:
        Monarch (arXiv 2204.00595), section 3.2 and its appendix on (MM*)^w_e: w-fold products of size e n whose
        top-left n × n part is kept.

    Example:
        >>> scale = mw.structures.Diagonal(torch.tensor([1.0, 2.0]))
        >>> product = scale @ mw.structures.Circulant(torch.tensor([0.0, 1.0]))
        >>> type(product).__name__, product.to_dense()
        ('Product', tensor([[0., 1.],
                [2., 0.]]))
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
        """Multiply structures, from left to right, into one flat product; only cropped products stay as they are."""
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
        """Invert every factor, as the product of the inverses in reverse order."""
        self._check_invertible()
        return Product(tuple(factor.inverse() for factor in reversed(self.factors)))

    def _solve(self, y: Tensor) -> Tensor:
        self._check_invertible()
        return reduce(lambda value, factor: factor._solve(value), self.factors, y)

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Multiply the factors' determinants."""
        self._check_invertible()
        signs, logarithms = zip(*(factor.slogdet() for factor in self.factors), strict=True)
        return reduce(torch.mul, signs), reduce(torch.add, logarithms)


class Expandable(StructuredMatrix):
    """A matrix whose factors, block-diagonal matrices and permutations, are transposed and inverted one by one."""

    @abstractmethod
    def expand(self) -> Product:
        """Write the matrix as its factors."""

    def _transpose(self) -> StructuredMatrix:
        return dataclasses.replace(self.expand(), crop=None)._transpose()

    def _flops(self) -> int:
        return 2 * self.num_parameters

    @override
    def inverse(self) -> StructuredMatrix:
        """Invert every factor, all of which must have square blocks, and undo the permutations."""
        self._check_invertible()
        return self.expand().inverse()

    def _solve(self, y: Tensor) -> Tensor:
        self._check_invertible()
        return self.expand()._solve(y)

    @override
    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Multiply the blocks' determinants and the signs of the permutations."""
        self._check_invertible()
        return self.expand().slogdet()


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sum(StructuredMatrix):
    """A sum of structures, such as flat block butterfly plus low rank (Pixelfly).

    Args:
        terms: Structures of one shape.

    Example:
        >>> total = mw.structures.Diagonal(torch.ones(2)) + mw.structures.Circulant(torch.tensor([0.0, 5.0]))
        >>> total.to_dense()
        tensor([[1., 5.],
                [5., 1.]])
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
        """Add structures of one shape into one flat sum."""
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
