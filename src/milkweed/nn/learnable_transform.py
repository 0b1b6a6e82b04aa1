"""Layers that start at a known transform, exactly, and learn another one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import check_dtype, check_size, check_tensor, checked
from milkweed._suggest import unknown
from milkweed.ops._common import without_autocast
from milkweed.structures import Monarch, Permutation, Product, StructuredMatrix
from milkweed.structures.transforms import balanced_factors, monarch_dct, monarch_dft, monarch_dst, monarch_hadamard


class LearnableTransform(nn.Module):
    """A Monarch matrix between fixed permutations that starts at a named transform and is trained from there.

    All parameters are real: the factors of a complex transform are stored as pairs (..., 2). The numbers are computed
    and returned in single precision at least, under autocast too, since rounded factors are no transform any more.

    With ``unitary=True`` the matrix is O_out · W₀ · O_in with the transform W₀ and block-diagonal unitary (orthogonal)
    O = expm(S), where S = A - Aᴴ is skew-Hermitian for whatever A is learned. Both fold into the Monarch factors, whose
    shapes stay, so the matrix is unitary at every step and costs no more to apply. Weight decay pulls towards the
    transform there, and towards zero otherwise.

    Args:
        n: Size of inputs and outputs.
        start: ``"dft"`` (complex), ``"dct"``, ``"dst"``, ``"hadamard"`` (n a power of two) or ``"random"``, orthogonal
            blocks without a permutation.
        inverse: Start at the inverse transform.
        norm: ``"ortho"`` for a unitary start, ``"backward"`` for the usual sums, for ``"dft"`` also ``"forward"``.
        unitary: Keep the matrix unitary.
        device: Where parameters live.
        dtype: Their dtype, real; torch's default dtype by default.

    Raises:
        ValueError: n does not suit the start, an option is unknown, or a unitary matrix is to start at a scaled one.
        TypeError: An option is of another type, or the dtype is not real floating point.

    Source:
        Monarch (arXiv 2204.00595), section 5.1, where PDE and MRI models learn from the Fourier transform on. The
        unitary variant is this library's.

    Example:
        >>> transform, x = mw.nn.LearnableTransform(64, "dct"), torch.randn(3, 64)
        >>> torch.allclose(transform(x), mw.monarch_dct(64, norm="ortho")(x), atol=1e-5)
        True
    """

    right: nn.Parameter
    left: nn.Parameter
    input_order: Tensor | None
    output_order: Tensor | None
    # With unitary=True only: W₀, while the parameters are then the A of the two turns.
    right_start: Tensor
    left_start: Tensor

    @checked
    def __init__(
        self,
        n: int,
        start: str = "dft",
        *,
        inverse: bool = False,
        norm: str = "ortho",
        unitary: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        if start not in _STARTS:
            raise ValueError(unknown("start", start, _STARTS))
        if unitary and norm != "ortho":
            raise ValueError(f"unitary=True needs a start that is unitary, norm='ortho'; got norm={norm!r}")
        self.n, self.start, self.inverse, self.norm, self.unitary = n, start, inverse, norm, unitary
        tensors = self._at_start()
        self.complex = tensors["right"].ndim == 4
        dtype = torch.get_default_dtype() if dtype is None else dtype
        device = torch.get_default_device() if device is None else device
        for name in ("right", "left"):
            self.register_parameter(name, nn.Parameter(torch.empty(tensors[name].shape, device=device, dtype=dtype)))
        for name in ("input_order", "output_order"):
            self.register_buffer(name, torch.empty_like(tensors[name], device=device) if name in tensors else None)
        if unitary:
            for name in ("right_start", "left_start"):
                self.register_buffer(name, torch.empty(tensors[name].shape, device=device, dtype=dtype))
        self._fill(tensors)

    def reset_parameters(self) -> None:
        """Go back to the start, e.g. after ``to_empty`` moved a meta layer; a random start is drawn anew."""
        self._fill(self._at_start())

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last dimension.

        Args:
            x: (..., n), real or complex.

        Returns:
            (..., n) in the promoted dtype of x and the parameters, single precision at least; complex if either is.

        Raises:
            ValueError: The last dimension is not n.
            TypeError: x holds no floating-point or complex numbers.
        """
        check_tensor("x", x)
        if x.ndim == 0 or x.shape[-1] != self.n:
            raise ValueError(f"x must be (..., n={self.n}); got shape {tuple(x.shape)}")
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"x must be floating point or complex; got {x.dtype}; use x.float()")
        with without_autocast(x):
            right, left = self._factors()
            dtype = torch.promote_types(x.dtype, right.dtype)
            y = _reorder(x.to(dtype), self.input_order)
            y = ops.monarch_mm(y, right.to(dtype), left.to(dtype))
            return _reorder(y, self.output_order)

    def matrix(self) -> Product:
        """The matrix as it is now, with gradients: one Monarch, with a Permutation on a side where there is one."""
        with without_autocast(self.right):
            monarch = Monarch(*self._factors())
        out, into = ([] if order is None else [Permutation(order)] for order in (self.output_order, self.input_order))
        return Product((*out, monarch, *into))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """The Monarch factors (k, q, p) and (l, s, r) as they are now, real or complex."""
        if not self.unitary:
            return self._numbers(self.right), self._numbers(self.left)
        # Both turns on the outside, where blocks are square even if the transform takes several features per slice.
        right = self._numbers(self.right_start) @ self._turn(self.right)
        return right, self._turn(self.left) @ self._numbers(self.left_start)

    def _turn(self, generator: Tensor) -> Tensor:
        numbers = self._numbers(generator)
        turned: Tensor = torch.linalg.matrix_exp(numbers - numbers.mH)
        return turned

    def _numbers(self, stored: Tensor) -> Tensor:
        stored = stored.to(torch.promote_types(stored.dtype, torch.float32))
        # A new tensor, not a view: a checkpoint may place pairs where complex numbers must not stand.
        return torch.complex(stored[..., 0], stored[..., 1]) if self.complex else stored

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            getattr(self, name).copy_(tensor)

    def _at_start(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, in float64 on the CPU."""
        with torch.device("cpu"):  # models are built inside `with torch.device("meta")` too
            matrix = _STARTS[self.start](self.n, self.inverse, self.norm)
        factors = matrix.factors if isinstance(matrix, Product) else (matrix,)
        position, monarch = next((i, factor) for i, factor in enumerate(factors) if isinstance(factor, Monarch))
        tensors = {
            "input_order" if i > position else "output_order": factor.index
            for i, factor in enumerate(factors)
            if isinstance(factor, Permutation)
        }
        right, left = (torch.view_as_real(t) if t.is_complex() else t for t in (monarch.right, monarch.left))
        if not self.unitary:
            return tensors | {"right": right, "left": left}
        zeros = {
            "right": right.new_zeros(right.shape[0], right.shape[2], *right.shape[2:]),
            "left": left.new_zeros(*left.shape[:2], left.shape[1], *left.shape[3:]),
        }
        return tensors | zeros | {"right_start": right, "left_start": left}

    @override
    def extra_repr(self) -> str:
        return f"n={self.n}, start={self.start!r}, inverse={self.inverse}, norm={self.norm!r}, unitary={self.unitary}"


class LearnableTransform2d(nn.Module):
    """One learnable transform along each of the last two dimensions, at the start the two-dimensional transform.

    Args:
        height: Size of the last but one dimension.
        width: Size of the last.
        start: As [`milkweed.nn.LearnableTransform`][], for both.
        inverse: As there.
        norm: As there.
        unitary: As there.
        device: Where parameters live.
        dtype: Their dtype, real.

    Source:
        Monarch (arXiv 2204.00595), section 5.1: the Fourier transforms of PDE and MRI models are of images.

    Example:
        >>> transform, x = mw.nn.LearnableTransform2d(8, 12), torch.randn(2, 8, 12)
        >>> torch.allclose(transform(x), torch.fft.fft2(x, norm="ortho"), atol=1e-5)
        True
    """

    @checked
    def __init__(
        self,
        height: int,
        width: int,
        start: str = "dft",
        *,
        inverse: bool = False,
        norm: str = "ortho",
        unitary: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size(height=height, width=width)
        self.height, self.width = height, width
        self.along_height, self.along_width = (
            LearnableTransform(n, start, inverse=inverse, norm=norm, unitary=unitary, device=device, dtype=dtype)
            for n in (height, width)
        )

    def reset_parameters(self) -> None:
        """Go back to the start."""
        self.along_height.reset_parameters()
        self.along_width.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last two dimensions.

        Args:
            x: (..., height, width), real or complex.

        Returns:
            (..., height, width) in the dtype that [`milkweed.nn.LearnableTransform`][] gives.

        Raises:
            ValueError: The last two dimensions are others.
        """
        check_tensor("x", x)
        if x.shape[-2:] != (self.height, self.width):
            raise ValueError(f"x must be (..., height={self.height}, width={self.width}); got shape {tuple(x.shape)}")
        y: Tensor = self.along_width(x)
        turned: Tensor = self.along_height(y.mT)
        return turned.mT


def _hadamard(n: int, inverse: bool, norm: str) -> StructuredMatrix:
    matrix = monarch_hadamard(n, norm=norm, dtype=torch.float64)
    # H⁻¹ = H / n; the orthogonal one is its own inverse.
    return Monarch(matrix.right, matrix.left / n) if inverse and norm != "ortho" else matrix


def _random(n: int, inverse: bool, norm: str) -> StructuredMatrix:
    """Orthogonal blocks, uniformly distributed, as is the inverse then."""
    if norm != "ortho":
        raise ValueError(f"norm must be 'ortho' for start='random', which has no other scale; got {norm!r}")
    n1, n2 = balanced_factors(n)
    blocks = []
    for shape in ((n1, n2, n2), (n2, n1, n1)):
        q, r = torch.linalg.qr(torch.randn(shape, dtype=torch.float64))
        # Without the signs of r, q would not be uniformly distributed.
        blocks.append(q * torch.sgn(r.diagonal(dim1=-2, dim2=-1))[:, None])
    return Monarch(*blocks)


_STARTS: dict[str, Callable[[int, bool, str], StructuredMatrix]] = {
    "dft": lambda n, inverse, norm: monarch_dft(n, inverse=inverse, norm=norm, dtype=torch.complex128),
    "dct": lambda n, inverse, norm: monarch_dct(n, inverse=inverse, norm=norm, dtype=torch.float64),
    "dst": lambda n, inverse, norm: monarch_dst(n, inverse=inverse, norm=norm, dtype=torch.float64),
    "hadamard": _hadamard,
    "random": _random,
}


def _reorder(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.index_select(-1, order)
