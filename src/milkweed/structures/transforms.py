"""Known transforms as exact structures: Fourier, cosine, sine, Hadamard, convolutions and products with diagonals."""

from __future__ import annotations

import functools
import math
from typing import TypeVar

import torch
from torch import Tensor

from milkweed._arguments import checked, is_kind, whole
from milkweed._suggest import unknown
from milkweed.structures.base import Product, StructuredMatrix, check_numbers
from milkweed.structures.monarch import Monarch
from milkweed.structures.permutation import Permutation

_Matrix = TypeVar("_Matrix", bound=StructuredMatrix)

# How much of 1/n the forward transform takes, by torch.fft's names; the inverse takes the rest.
_NORMS = {"backward": 0.0, "ortho": 0.5, "forward": 1.0}
_ORTHO_OR_NOT = ("backward", "ortho")


@checked(but=("n",))
def monarch_dft(
    n: int,
    *,
    inverse: bool = False,
    norm: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Product:
    """Write the discrete Fourier transform as one complex Monarch matrix times one permutation.

    With n = n₁ n₂, t = t₂ n₁ + t₁ and k = k₁ n₂ + k₂ the exponent k t is k₂ t₂ n₁ + k₂ t₁ + k₁ t₁ n₂ up to multiples of
    n: the first two terms are the right factor, the last the left one, and k₁ n₂ + k₂ is the order in which a Monarch
    matrix emits. n₁ ≤ n₂ are as close as n's divisors allow; for a prime n the right factor is one dense n × n block,
    correct but no faster than a dense matrix.

    Args:
        n: Length.
        inverse: The inverse transform, as `torch.fft.ifft`.
        norm: ``"backward"`` (also None), ``"ortho"`` or ``"forward"``, as in `torch.fft.fft`. Each factor takes its
            share, so that with ``"ortho"`` all blocks are unitary.
        dtype: Complex; by default the counterpart of torch's default dtype.
        device: Where the tensors live.

    Returns:
        Monarch (right (n₁, n₂, n₂), left (n₂, n₁, n₁)) times Permutation.

    Raises:
        ValueError: n is not an integer of at least 1, or the norm is unknown.
        TypeError: The dtype is not complex.

    Source:
        Monarch (arXiv 2204.00595), section 3.2, with the permutation of the columns that its statement leaves out.

    Example:
        >>> F, x = mw.monarch_dft(12), torch.randn(12)
        >>> torch.allclose(F @ x, torch.fft.fft(x), atol=1e-5)
        True
    """
    power = _power(norm, _NORMS)
    dtype = _complex_of(torch.get_default_dtype()) if dtype is None else dtype
    if not dtype.is_complex:
        raise TypeError(f"dtype must be complex for a Fourier transform; got {dtype}; use {_complex_of(dtype)}")
    return _cast(Product(_fourier(n, inverse, 1 - power if inverse else power)), dtype, device)


@checked(but=("n",))
def monarch_dct(
    n: int,
    *,
    inverse: bool = False,
    norm: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Product:
    """Write the discrete cosine transform (DCT-II) as one real rank-2 Monarch matrix times one permutation.

    y_k = 2 Σ_t x_t cos(π k (2 t + 1) / 2n). In Makhoul's order v (even positions upward, then odd ones downward) the
    angle is π k (4 u + 1) / 2n. With u = u₂ n₁ + u₁ and k = k₁ n₂ + k₂ it is α(k₁, u₁) + β(k₂, u₁, u₂) up to whole
    turns, and cos(α + β) = cos α cos β - sin α sin β takes two middle features per slice. n₁ ≤ n₂ are as close as n's
    divisors allow; for a prime n the right factor is one dense 2n × n block.

    Args:
        n: Length.
        inverse: The exact inverse, a scaled DCT-III.
        norm: None or ``"backward"`` for the sum above, ``"ortho"`` for the orthogonal matrix; as `scipy.fft.dct`.
        dtype: Real; torch's default dtype by default.
        device: Where the tensors live.

    Returns:
        Monarch times Permutation; the inverse is Permutation times Monarch times Permutation.

    Raises:
        ValueError: n is not an integer of at least 1, or the norm is unknown.
        TypeError: The dtype is not real.

    Source:
        Makhoul, "A fast cosine transform in one and two dimensions", IEEE TASSP 28 (1980), for the order; the
        factorisation is this library's.

    Example:
        >>> C = mw.monarch_dct(12, norm="ortho")
        >>> torch.allclose(C.T @ (C @ torch.ones(12)), torch.ones(12), atol=1e-5)
        True
    """
    return _trigonometric(n, False, inverse, norm, dtype, device)


@checked(but=("n",))
def monarch_dst(
    n: int,
    *,
    inverse: bool = False,
    norm: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Product:
    """Write the discrete sine transform (DST-II) as one real rank-2 Monarch matrix times one permutation.

    y_k = 2 Σ_t x_t sin(π (k + 1) (2 t + 1) / 2n), which is the cosine transform of (-1)^t x_t read backwards: the signs
    go into the right factor, the reversal into the order of the blocks and of their rows.

    Args:
        n: Length.
        inverse: The exact inverse, a scaled DST-III.
        norm: None or ``"backward"`` for the sum above, ``"ortho"`` for the orthogonal matrix; as `scipy.fft.dst`.
        dtype: Real; torch's default dtype by default.
        device: Where the tensors live.

    Returns:
        Monarch times Permutation; the inverse is Permutation times Monarch times Permutation.

    Raises:
        ValueError: n is not an integer of at least 1, or the norm is unknown.
        TypeError: The dtype is not real.

    Source:
        As `monarch_dct`.

    Example:
        >>> S = mw.structures.monarch_dst(6, norm="ortho")
        >>> torch.allclose((S @ S.T).to_dense(), torch.eye(6), atol=1e-5)
        True
    """
    return _trigonometric(n, True, inverse, norm, dtype, device)


@checked(but=("n",))
def monarch_hadamard(
    n: int,
    *,
    norm: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Monarch:
    """Write the Hadamard matrix in Sylvester's order as one Monarch matrix, H_n = H_n₁ ⊗ H_n₂.

    Args:
        n: A power of two.
        norm: None or ``"backward"`` for entries ±1, ``"ortho"`` for the orthogonal matrix, whose blocks are orthogonal.
        dtype: Real or complex; torch's default dtype by default.
        device: Where the tensors live.

    Returns:
        A symmetric n × n matrix.

    Raises:
        ValueError: n is no power of two, or the norm is unknown.

    Source:
        Monarch (arXiv 2204.00595), section 3.2: (A ⊗ I)(I ⊗ B) = A ⊗ B.

    Example:
        >>> mw.monarch_hadamard(4).to_dense()
        tensor([[ 1.,  1.,  1.,  1.],
                [ 1., -1.,  1., -1.],
                [ 1.,  1., -1., -1.],
                [ 1., -1., -1.,  1.]])
    """
    n = _size(n)
    if n & (n - 1):
        lower = 1 << (n.bit_length() - 1)
        nearest = lower if n - lower < 2 * lower - n else 2 * lower
        raise ValueError(f"n must be a power of two for a Hadamard matrix; got n={n}; the nearest is {nearest}")
    power = _power(norm, _ORTHO_OR_NOT)
    a, b = (_sylvester(size) * size**-power for size in balanced_factors(n))
    matrix = Monarch.kronecker(a, b)
    # Copies: every block of a Kronecker product shares its memory with the others, so none could be written to.
    matrix = matrix._map(torch.clone)
    return _cast(matrix, torch.get_default_dtype() if dtype is None else dtype, device)


@checked
def monarch_circulant(column: Tensor) -> Product:
    """Write circular convolution as one MM* product.

    The transform F = M P is symmetric and diagonalises it: C = F⁻¹ Λ F = M̄ (P Λ Pᵀ) Mᵀ, and the diagonal goes into the
    right factor of M̄. Computed in float64, then cast.

    Args:
        column: (n,), the first column.

    Returns:
        C with C[i, j] = column[(i - j) mod n], in complex numbers even for a real column (the imaginary parts of its
        products with real vectors are rounding): Monarch times Mᵀ, which is a Monarch between two permutations.
        Differentiable with respect to the column.

    Source:
        Monarch (arXiv 2204.00595), section 3.2: convolution is in MM*.

    Example:
        >>> column = torch.randn(12)
        >>> W = mw.structures.monarch_circulant(column)
        >>> torch.allclose(W.to_dense().real, mw.structures.Circulant(column).to_dense(), atol=1e-5)
        True
    """
    check_numbers("column", column, 1)
    monarch, order = _fourier(column.shape[0], False, 0.5)
    monarch, order = monarch.to(device=column.device), order.to(device=column.device)
    eigenvalues = torch.fft.fft(column.to(torch.complex128))
    scaled = _scaled(monarch.conj(), columns=order(eigenvalues))
    return Product((scaled, *_transposed(monarch))).to(dtype=_complex_of(column.dtype))


@checked
def monarch_toeplitz(column: Tensor, row: Tensor) -> Product:
    """Write a Toeplitz matrix, such as a linear convolution, as the corner of a circulant one of twice the size.

    Args:
        column: (m,), the first column.
        row: (n - 1,), the first row from its second entry on, as in [`milkweed.structures.Toeplitz`][].

    Returns:
        The m × n matrix as a cropped MM* product of size 2 max(m, n), complex as `monarch_circulant`.

    Raises:
        TypeError: The dtypes differ.
        ValueError: ``row`` has another number of dimensions.

    Source:
        Monarch (arXiv 2204.00595), section 3.2: Toeplitz matrices are in (MM*) with expansion e = 2.

    Example:
        >>> column, row = torch.randn(5), torch.randn(4)
        >>> W = mw.structures.monarch_toeplitz(column, row)
        >>> torch.allclose(W.to_dense().real, mw.structures.Toeplitz(column, row).to_dense(), atol=1e-5)
        True
    """
    check_numbers("column", column, 1)
    if row.ndim != 1:
        raise ValueError(f"row must have 1 dimension; got shape {tuple(row.shape)}")
    if column.dtype != row.dtype:
        raise TypeError(f"column and row must have one dtype; got {column.dtype} and {row.dtype}; cast one with .to()")
    m, n = column.shape[0], row.shape[0] + 1
    gap = column.new_zeros(2 * max(m, n) - m - n + 1)
    circulant = monarch_circulant(torch.cat([column, gap, row.flip(0)]))
    return Product(circulant.factors, (m, n))


@checked
def monarch_fastfood(scale: Tensor, gaussian: Tensor, permutation: Tensor, signs: Tensor) -> Product:
    """Write Fastfood's stand-in for a Gaussian matrix, S H G Π H B, as two Monarch matrices around a permutation.

    H has entries ±1; a kernel of width σ wants ``scale`` to hold the paper's 1 / (σ √n) as well.

    Args:
        scale: (n,), S; n a power of two.
        gaussian: (n,), G.
        permutation: (n,) integers, Π x = x[permutation].
        signs: (n,), B.

    Returns:
        Monarch times Permutation times Monarch, in the promoted dtype of the diagonals.

    Raises:
        ValueError: The sizes differ or are no power of two, or ``permutation`` is not a permutation.

    Source:
        Le, Sarlos, Smola, "Fastfood: approximate kernel expansions in loglinear time" (arXiv 1408.3060).

    Example:
        >>> signs, order = torch.tensor([1.0, -1.0] * 8), torch.randperm(16)
        >>> W = mw.structures.monarch_fastfood(torch.ones(16), torch.randn(16), order, signs)
        >>> W.shape, len(W.factors)
        ((16, 16), 3)
    """
    dtype = _check_diagonals(scale=scale, gaussian=gaussian, signs=signs)
    try:
        middle = Permutation(permutation)
    except (TypeError, ValueError) as error:
        raise type(error)(f"permutation cannot be used: {error}") from None
    if middle.shape[0] != scale.shape[0]:
        raise ValueError(f"permutation must have scale's size {scale.shape[0]}; got {middle.shape[0]}")
    hadamard = monarch_hadamard(scale.shape[0], dtype=dtype, device=scale.device)
    first = _scaled(hadamard, columns=signs)
    return Product((_scaled(hadamard, rows=scale, columns=gaussian), middle, first))


@checked
def monarch_acdc(a: Tensor, d: Tensor) -> Product:
    """Write A C D C⁻¹, with diagonals A and D and the orthogonal cosine transform C, as one product of two Monarchs.

    With C = M P the middle is M (P D Pᵀ) Mᵀ: the permutations cancel, and both diagonals go into the first M.

    Args:
        a: (n,), A.
        d: (n,), D.

    Returns:
        Monarch times Mᵀ, which is a Monarch between two permutations, in the promoted dtype of both diagonals.

    Source:
        Moczulski et al., "ACDC: a structured efficient linear layer" (arXiv 1511.05946), which multiplies row vectors;
        here, as everywhere in this package, the matrix acts on columns: C⁻¹ first.

    Example:
        >>> W = mw.structures.monarch_acdc(torch.ones(8), torch.ones(8))  # C C⁻¹
        >>> torch.allclose(W.to_dense(), torch.eye(8), atol=1e-5)
        True
    """
    dtype = _check_diagonals(a=a, d=d)
    monarch, order = _cosine(a.shape[0], False, 0.5)
    monarch, order = _cast(monarch, dtype, a.device), _cast(order, dtype, a.device)
    return Product((_scaled(monarch, rows=a, columns=order(d)), *_transposed(monarch)))


@checked
def monarch_hd(*signs: Tensor) -> Product:
    """Write H D_k ... H D₁, with the orthogonal Hadamard matrix H, as one Monarch matrix per diagonal.

    Three diagonals of random signs give the structured spinner (HD)³, nearly a random rotation.

    Args:
        *signs: (n,) each, n a power of two; the first is applied first. Any numbers will do.

    Returns:
        As many Monarch matrices, in the promoted dtype of the diagonals.

    Raises:
        ValueError: There is no diagonal, or the sizes differ or are no power of two.

    Source:
        Bojarski et al., "Structured adaptive and random spinners" (arXiv 1610.06209).

    Example:
        >>> W = mw.structures.monarch_hd(torch.tensor([1.0, -1.0, 1.0, 1.0]))
        >>> (W @ torch.ones(4)).round(decimals=2)
        tensor([ 1.,  1., -1.,  1.])
    """
    if not signs:
        raise ValueError("signs must be at least one diagonal (n,); got none")
    dtype = _check_diagonals(**{f"signs[{index}]": diagonal for index, diagonal in enumerate(signs)})
    hadamard = monarch_hadamard(signs[0].shape[0], norm="ortho", dtype=dtype, device=signs[0].device)
    return Product(tuple(_scaled(hadamard, columns=diagonal) for diagonal in reversed(signs)))


def balanced_factors(n: int) -> tuple[int, int]:
    """Split n into n₁ ≤ n₂ as evenly as divisors allow, for the smallest Monarch matrix; n₁ = 1 for a prime."""
    n = _size(n)
    first = next(divisor for divisor in range(math.isqrt(n), 0, -1) if n % divisor == 0)
    return first, n // first


# ---------------------------------------------------------------------- the factors, in float64 on the CPU


def _fourier(n: int, inverse: bool, power: float) -> tuple[Monarch, Permutation]:
    """The transform times n^-power: M and P; `monarch_dft` has the derivation."""
    n1, n2 = balanced_factors(n)
    sign = 1 if inverse else -1
    # right[t1, k2, t2] takes ω^(k2 (t2 n1 + t1)), left[k2, k1, t1] takes ω^(k1 t1 n2). Middle feature t1 n2 + k2 is
    # input t1 of left block k2, as a Monarch matrix has it, and the permutation brings the inputs from t2 n1 + t1 to
    # (t1, t2).
    k1, k2, t1, t2 = (_range(size) for size in (n1, n2, n1, n2))
    right = _angles(sign * k2[:, None] * (t2 * n1 + t1[:, None, None]), n)
    left = _angles(sign * k1[:, None] * t1, n1).expand(n2, n1, n1)
    monarch = Monarch(_unit(right) * n2**-power, _unit(left) * n1**-power)
    return monarch, Permutation.stride(n2, n1, device="cpu")


def _cosine(n: int, sine: bool, power: float) -> tuple[Monarch, Permutation]:
    """DCT-II or DST-II, row k times s_k^(2 power), where s makes the rows orthonormal: M and P."""
    n1, n2 = balanced_factors(n)
    k1, k2, u1, u2 = (_range(size) for size in (n1, n2, n1, n2))
    if sine:  # row k is the cosines' row n - 1 - k = (n1 - 1 - k1) n2 + (n2 - 1 - k2)
        k1, k2 = k1.flip(0), k2.flip(0)
    # The middle of right block u1 is [cos β; sin β] over k2, so left block k2 gets both in turn for every u1, and its
    # row k1 holds cos α and -sin α in turn.
    beta = _angles(k2[:, None] * (4 * (u2 * n1 + u1[:, None, None]) + 1), 4 * n)
    alpha = _angles(k1[:, None] * (4 * u1 + 1), 4 * n1)
    right = torch.cat([beta.cos(), beta.sin()], 1) * n2**-power
    left = torch.stack([alpha.cos(), -alpha.sin()], -1).flatten(1) * (2 * (2 * n1) ** -power)
    # The row of zero frequency is longer than the others by √2.
    zero = ((k1 == 0) & (k2[:, None] == 0)).double()
    monarch = Monarch(right, left * (1 - zero * (1 - 2**-power))[:, :, None])
    order = _even_odd(n)[Permutation.stride(n2, n1, device="cpu").index]
    if sine:
        monarch = _scaled(monarch, columns=1 - 2.0 * (order % 2).double())
    return monarch, Permutation(order)


def _trigonometric(
    n: int,
    sine: bool,
    inverse: bool,
    norm: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Product:
    power = _power(norm, _ORTHO_OR_NOT)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be real floating point for a cosine or sine transform; got {dtype}")
    # With T = S⁻¹ Q, Q orthogonal: T⁻¹ = Qᵀ S = (S² T)ᵀ, the transpose with the rest of the scales.
    monarch, order = _cosine(n, sine, 1 - power if inverse else power)
    if not inverse:
        return _cast(Product((monarch, order)), dtype, device)
    out, transposed, into = _transposed(monarch)
    undone = Permutation(out.index[order.index.argsort()])
    return _cast(Product((undone, transposed, into)), dtype, device)


def _transposed(monarch: Monarch) -> tuple[Permutation, Monarch, Permutation]:
    """The transpose of a Monarch matrix with q a multiple of l: a Monarch matrix between two permutations."""
    # They come in the order of a product: the one applied last, the matrix, the one applied first. Feature (k, ρ, l)
    # between the factors becomes (l, ρ, k); the outputs come as (p, k), the inputs go in as (l, s).
    k, q, p = monarch.right.shape
    l, s, _ = monarch.left.shape  # noqa: E741 - the paper's letter
    right = monarch.left.unflatten(2, (k, q // l)).permute(0, 3, 2, 1).flatten(1, 2)
    left = monarch.right.unflatten(1, (q // l, l)).permute(0, 3, 2, 1).flatten(2, 3)
    out, into = (Permutation.stride(*table, device=right.device) for table in ((p, k), (s, l)))
    return out, Monarch(right, left), into


def _scaled(monarch: Monarch, rows: Tensor | None = None, columns: Tensor | None = None) -> Monarch:
    """diag(rows) · monarch · diag(columns), folded into the factors."""
    right, left = monarch.right, monarch.left
    if columns is not None:
        right = right * columns.reshape(right.shape[0], 1, right.shape[2])
    if rows is not None:
        left = left * rows.reshape(left.shape[1], left.shape[0], 1).transpose(0, 1)
    return Monarch(right, left)


def _even_odd(n: int) -> Tensor:
    """Makhoul's order: even positions upward, then odd ones downward."""
    return torch.cat([_range(n)[::2], _range(n)[1::2].flip(0)])


def _sylvester(n: int) -> Tensor:
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device="cpu")
    one = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    return functools.reduce(torch.kron, [step] * (n.bit_length() - 1), one)


def _range(n: int) -> Tensor:
    return torch.arange(n, device="cpu")


def _angles(numerator: Tensor, whole: int) -> Tensor:
    """The angle of numerator / whole turns. Reduced as integers: rounding would grow with the number of turns."""
    rest = numerator % whole
    return torch.where(2 * rest > whole, rest - whole, rest).double() * (2 * math.pi / whole)


def _unit(angle: Tensor) -> Tensor:
    return torch.complex(angle.cos(), angle.sin())


# ---------------------------------------------------------------------- arguments


def _size(n: int) -> int:
    if not is_kind(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1; got n={n!r}")
    return whole("n", n)


def _power(norm: str | None, known: tuple[str, ...] | dict[str, float]) -> float:
    norm = "backward" if norm is None else norm
    if norm not in known:
        raise ValueError(unknown("norm", norm, known))
    return _NORMS[norm]


def _check_diagonals(**diagonals: Tensor) -> torch.dtype:
    """Refuse diagonals of different sizes; their common dtype."""
    first = next(iter(diagonals))
    for name, diagonal in diagonals.items():
        check_numbers(name, diagonal, 1)
        if len(diagonal) != len(diagonals[first]):
            raise ValueError(f"{name} must have {first}'s size {len(diagonals[first])}; got {len(diagonal)}")
    return functools.reduce(torch.promote_types, (diagonal.dtype for diagonal in diagonals.values()))


def _complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex counterpart, of single precision at least: few operations know half-precision complex numbers."""
    return torch.promote_types(dtype, torch.complex64)


def _cast(matrix: _Matrix, dtype: torch.dtype, device: torch.device | str | None) -> _Matrix:
    # In this order: not every device has float64.
    return matrix.to(dtype=dtype).to(device=torch.get_default_device() if device is None else device)
