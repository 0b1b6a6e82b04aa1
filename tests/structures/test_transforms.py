"""The transforms against torch.fft, scipy and the formulas that define them."""

import math
import warnings

import pytest
import torch
from tests.contracts import structure as contract

from milkweed.structures import Circulant, Monarch, Permutation, Product, Toeplitz, transforms

SIZES = [1, 2, 7, 36, 63, 168, 1000, 1024]
POWERS = [1, 2, 8, 64, 1024]
sizes = pytest.mark.parametrize("n", SIZES)
powers = pytest.mark.parametrize("n", POWERS)
directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
trigonometric = pytest.mark.parametrize("kind", ["dct", "dst"])


@pytest.fixture(autouse=True)
def double_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def check(matrix, dense, tolerance):
    found = matrix.to_dense()
    assert found.dtype in {dense.dtype, torch.complex128}
    assert (found - dense).abs().max() <= tolerance * dense.abs().max()


def fourier(n, inverse, norm):
    function = torch.fft.ifft if inverse else torch.fft.fft
    return function(torch.eye(n, dtype=torch.complex128), dim=0, norm=norm)


def cosines_or_sines(kind, n, norm):
    """The defining sums; angles are reduced as integers, so that this is exact at any size."""
    k, t = torch.arange(n)[:, None], torch.arange(n)
    turns = (k + (kind == "dst")) * (2 * t + 1) % (4 * n)
    dense = 2 * getattr(torch, {"dct": "cos", "dst": "sin"}[kind])(turns * (math.pi / (2 * n)))
    if norm == "ortho":
        dense *= math.sqrt(1 / (2 * n))
        dense[0 if kind == "dct" else -1] *= math.sqrt(1 / 2)
    return dense


def sylvester(n):
    return torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)])


def trigonometric_transform(kind):
    return {"dct": transforms.monarch_dct, "dst": transforms.monarch_dst}[kind]


@sizes
@directions
@pytest.mark.parametrize("norm", [None, "backward", "ortho", "forward"])
def test_fourier(n, inverse, norm):
    matrix = transforms.monarch_dft(n, inverse=inverse, norm=norm)
    check(matrix, fourier(n, inverse, norm), 1e-13)
    assert [type(factor) for factor in matrix.factors] == [Monarch, Permutation]
    x = torch.randn(3, n)
    expected = (torch.fft.ifft if inverse else torch.fft.fft)(x, norm=norm)
    assert (matrix(x) - expected).norm() <= 1e-13 * expected.norm()


@trigonometric
@sizes
@pytest.mark.parametrize("norm", [None, "ortho"])
def test_cosines_and_sines(kind, n, norm):
    expected = cosines_or_sines(kind, n, norm)
    forward = trigonometric_transform(kind)(n, norm=norm)
    check(forward, expected, 1e-13)
    assert [type(factor) for factor in forward.factors] == [Monarch, Permutation]
    assert forward.factors[0].slice_ranks().unique().tolist() == [2]
    backward = trigonometric_transform(kind)(n, inverse=True, norm=norm)
    check(backward @ forward, torch.eye(n), 1e-13)
    check(forward @ backward, torch.eye(n), 1e-13)
    assert [type(factor) for factor in backward.factors] == [Permutation, Monarch, Permutation]
    assert backward.num_parameters == forward.num_parameters


@trigonometric
@directions
@pytest.mark.parametrize("norm", [None, "ortho"])
@pytest.mark.parametrize("n", [1, 7, 36, 1000])
def test_cosines_and_sines_are_those_of_scipy(kind, inverse, norm, n):
    fft = pytest.importorskip("scipy.fft")
    x = torch.randn(4, n)
    expected = torch.from_numpy(getattr(fft, f"{'i' * inverse}{kind}")(x.numpy(), norm=norm))
    found = trigonometric_transform(kind)(n, inverse=inverse, norm=norm)(x)
    assert (found - expected).norm() <= 1e-13 * expected.norm()


@powers
def test_hadamard(n):
    matrix = transforms.monarch_hadamard(n)
    check(matrix, sylvester(n), 1e-15)
    check(transforms.monarch_hadamard(n, norm="ortho"), sylvester(n) / math.sqrt(n), 1e-15)
    assert isinstance(matrix, Monarch)
    assert matrix.right.is_contiguous()
    assert matrix.left.is_contiguous()


@sizes
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_circulant(n, dtype):
    column = torch.randn(n, dtype=dtype)
    index = (torch.arange(n)[:, None] - torch.arange(n)) % n
    matrix = transforms.monarch_circulant(column)
    check(matrix, column[index], 1e-14)
    assert [type(factor) for factor in matrix.factors] == [Monarch, Permutation, Monarch, Permutation]
    contract.close(matrix.to_dense(), Circulant(column).to_dense(), 1e-12)


@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (2, 2), (7, 7), (63, 63), (36, 36), (168, 168), (1000, 1000), (1024, 1024), (5, 12), (9, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_toeplitz(m, n, dtype):
    column, row = torch.randn(m, dtype=dtype), torch.randn(n - 1, dtype=dtype)
    matrix = transforms.monarch_toeplitz(column, row)
    assert matrix.shape == (m, n)
    diagonals = torch.cat([row.flip(0), column])  # of i - j from 1 - n to m - 1
    check(matrix, diagonals[torch.arange(m)[:, None] - torch.arange(n) + n - 1], 1e-13)
    contract.close(matrix.to_dense(), Toeplitz(column, row).to_dense(), 1e-12)


def test_toeplitz_is_linear_convolution():
    signal, kernel = torch.randn(30), torch.randn(12)
    matrix = transforms.monarch_toeplitz(torch.cat([kernel, torch.zeros(29)]), torch.zeros(29))
    expected = torch.nn.functional.conv1d(signal[None], kernel.flip(0)[None, None], padding=11)[0]
    contract.close(matrix(signal), expected, 1e-13)


@powers
def test_fastfood(n):
    scale, gaussian, signs = torch.randn(3, n)
    permutation = torch.randperm(n)
    h = sylvester(n)
    expected = (scale[:, None] * h * gaussian) @ (h * signs)[permutation]
    matrix = transforms.monarch_fastfood(scale, gaussian, permutation, signs)
    check(matrix, expected, 1e-13)
    assert [type(factor) for factor in matrix.factors] == [Monarch, Permutation, Monarch]


@sizes
def test_acdc(n):
    a, d = torch.randn(2, n)
    c = cosines_or_sines("dct", n, "ortho")
    check(transforms.monarch_acdc(a, d), a[:, None] * (c * d) @ c.T, 1e-13)
    check(transforms.monarch_acdc(torch.ones(n), torch.ones(n)), torch.eye(n), 1e-13)


@powers
@pytest.mark.parametrize("count", [1, 3])
def test_hd(n, count):
    signs = torch.randn(count, n)
    h, expected = sylvester(n) / math.sqrt(n), torch.eye(n)
    for diagonal in signs:
        expected = h @ (diagonal[:, None] * expected)
    matrix = transforms.monarch_hd(*signs)
    check(matrix, expected, 1e-13)
    assert [type(factor) for factor in matrix.factors] == [Monarch] * count


BUILDS = {
    "dft": lambda: transforms.monarch_dft(12),
    "idct": lambda: transforms.monarch_dct(12, inverse=True),
    "dst": lambda: transforms.monarch_dst(7),
    "hadamard": lambda: transforms.monarch_hadamard(8),
    "circulant": lambda: transforms.monarch_circulant(torch.randn(6)),
    "toeplitz": lambda: transforms.monarch_toeplitz(torch.randn(4), torch.randn(2)),
    "fastfood": lambda: transforms.monarch_fastfood(*torch.randn(2, 8), torch.randperm(8), torch.randn(8)),
    "acdc": lambda: transforms.monarch_acdc(*torch.randn(2, 6)),
    "hd": lambda: transforms.monarch_hd(*torch.randn(2, 8)),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_they_are_structures_like_any_other(build, tmp_path):
    matrix = build()
    dense = matrix.to_dense()
    contract.check_products(matrix, dense)
    contract.check_related_matrices(matrix, dense)
    contract.check_copies(matrix, tmp_path)
    contract.check_conversions(matrix)
    contract.check_gradients(matrix)


def test_gradients_reach_the_arguments():
    x = torch.randn(2, 6, dtype=torch.complex128)
    column, row, a, d = (torch.randn(size, requires_grad=True) for size in (6, 5, 6, 6))
    assert torch.autograd.gradcheck(lambda column: transforms.monarch_circulant(column)(x), column)
    assert torch.autograd.gradcheck(lambda *entries: transforms.monarch_toeplitz(*entries)(x), (column, row))
    assert torch.autograd.gradcheck(lambda *entries: transforms.monarch_acdc(*entries)(x), (a, d))
    diagonals = [torch.randn(8, requires_grad=True) for _ in range(3)]
    y = torch.randn(2, 8)
    assert torch.autograd.gradcheck(lambda *entries: transforms.monarch_hd(*entries)(y), diagonals)
    permutation = torch.randperm(8)

    def fastfood(scale, gaussian, signs):
        return transforms.monarch_fastfood(scale, gaussian, permutation, signs)(y)

    assert torch.autograd.gradcheck(fastfood, diagonals)


def test_unitary_factors():
    for matrix in (transforms.monarch_dft(60, norm="ortho").factors[0], transforms.monarch_hadamard(32, norm="ortho")):
        for factor in (matrix.right, matrix.left):
            contract.close(factor @ factor.mH, torch.eye(factor.shape[-1]).expand_as(factor), 1e-14)


def test_they_cost_less_than_dense_matrices():
    assert transforms.monarch_dft(1024).num_parameters == 2 * 1024 * 32
    assert transforms.monarch_dct(1024).num_parameters == 4 * 1024 * 32
    assert transforms.monarch_dct(1024, inverse=True).num_parameters == 4 * 1024 * 32
    assert transforms.monarch_circulant(torch.randn(1024)).num_parameters == 4 * 1024 * 32
    assert transforms.monarch_dft(7).factors[0].right.shape == (1, 7, 7)


def test_balanced_factors():
    found = [transforms.balanced_factors(n) for n in (1, 2, 7, 12, 36, 1000, 1024)]
    assert found == [(1, 1), (1, 2), (1, 7), (3, 4), (6, 6), (25, 40), (32, 32)]


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_dtypes_and_devices(default):
    torch.set_default_dtype(default)
    assert transforms.monarch_dft(6).dtype == torch.complex64
    assert transforms.monarch_dct(6).dtype == transforms.monarch_hadamard(4).dtype == default
    assert transforms.monarch_dct(6, dtype=torch.float64).dtype == torch.float64
    assert transforms.monarch_circulant(torch.randn(6)).dtype == torch.complex64
    assert transforms.monarch_circulant(torch.randn(6, dtype=torch.float64)).dtype == torch.complex128
    assert transforms.monarch_acdc(torch.randn(6), torch.randn(6, dtype=torch.complex128)).dtype == torch.complex128
    for build in (transforms.monarch_dft, transforms.monarch_dst, transforms.monarch_hadamard):
        assert build(8, device="meta").device.type == "meta"
    on_meta = torch.ones(8, device="meta")
    assert transforms.monarch_circulant(on_meta).device.type == "meta"
    assert transforms.monarch_acdc(on_meta, on_meta).shape == (8, 8)
    assert transforms.monarch_hd(on_meta).device.type == "meta"


def built_in(dtype, complex_dtype):
    for options in ({}, {"norm": "ortho"}, {"norm": "ortho", "inverse": True}, {"inverse": True}):
        yield transforms.monarch_dft(1000, dtype=complex_dtype, **options)
        yield transforms.monarch_dct(1000, dtype=dtype, **options)
        yield transforms.monarch_dst(1000, dtype=dtype, **options)
    yield transforms.monarch_hadamard(512, norm="ortho", dtype=dtype)
    real = torch.linspace(-1, 1, 512, dtype=dtype)
    yield transforms.monarch_circulant(real)
    yield transforms.monarch_acdc(real, real)
    yield transforms.monarch_hd(real, real)


def test_numbers_do_not_depend_on_the_default_dtype():
    exact = list(built_in(torch.float64, torch.complex128))
    torch.set_default_dtype(torch.float32)
    for found, expected in zip(built_in(torch.float64, torch.complex128), exact, strict=True):
        for (_, tensor), (_, other) in zip(found.named_tensors(), expected.named_tensors(), strict=True):
            assert torch.equal(tensor, other)


def test_single_precision_is_rounded_once():
    single, double = ([*built_in(*dtypes)][:13] for dtypes in [(torch.float32, torch.complex64), (None, None)])
    for found, exact in zip(single, double, strict=True):
        for (_, tensor), (_, other) in zip(found.named_tensors(), exact.named_tensors(), strict=True):
            assert torch.equal(tensor, other.to(tensor.dtype))


def test_no_warnings_at_prime_sizes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (13, 17):
            transforms.monarch_dft(n).to_dense()
            transforms.monarch_dct(n, inverse=True).to_dense()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: transforms.monarch_dft(0), ValueError, "n must be a whole number of at least 1; got n=0"),
        (lambda: transforms.monarch_dct(2.0), ValueError, "n must be a whole number"),
        (lambda: transforms.monarch_dft(4, norm="orto"), ValueError, "norm='orto' is unknown; did you mean 'ortho'"),
        (lambda: transforms.monarch_dct(4, norm="forward"), ValueError, "norm='forward' is unknown"),
        (lambda: transforms.monarch_dft(4, dtype=torch.float32), TypeError, "must be complex .* use torch.complex64"),
        (lambda: transforms.monarch_dst(4, dtype=torch.complex64), TypeError, "must be real .* got torch.complex64"),
        (lambda: transforms.monarch_hadamard(100), ValueError, "power of two .* n=100; the nearest is 128"),
        (lambda: transforms.monarch_hadamard(80), ValueError, "power of two .* n=80; the nearest is 64"),
        (lambda: transforms.monarch_hadamard(-4), ValueError, "n must be a whole number"),
        (lambda: transforms.monarch_circulant(torch.ones(2, 2)), ValueError, "column must have 1 dimension"),
        (lambda: transforms.monarch_circulant(torch.arange(3)), TypeError, "column must be a floating-point"),
        (lambda: transforms.monarch_toeplitz(torch.ones(2), torch.ones(1, 1)), ValueError, "row must have 1 dimension"),
        (
            lambda: transforms.monarch_toeplitz(torch.ones(2), torch.ones(1).float()),
            TypeError,
            "column and row must have one dtype",
        ),
        (lambda: transforms.monarch_hd(), ValueError, "signs must be at least one diagonal"),
        (lambda: transforms.monarch_hd(torch.ones(6)), ValueError, "the nearest is 8"),
        (
            lambda: transforms.monarch_hd(torch.ones(4), torch.ones(8)),
            ValueError,
            r"signs\[1\] must have signs\[0\]'s size 4; got 8",
        ),
        (lambda: transforms.monarch_acdc(torch.ones(4), torch.ones(3)), ValueError, "d must have a's size 4; got 3"),
        (lambda: transforms.monarch_acdc(torch.tensor(1.0), torch.ones(3)), ValueError, "a must have 1 dimensions"),
        (
            lambda: transforms.monarch_fastfood(*torch.ones(2, 4), torch.randperm(8), torch.ones(4)),
            ValueError,
            "permutation must have scale's size 4; got 8",
        ),
        (
            lambda: transforms.monarch_fastfood(*torch.ones(2, 4), torch.ones(4), torch.ones(4)),
            TypeError,
            "index must be a one-dimensional int64",
        ),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_every_transform_is_exported():
    from milkweed import structures

    names = {name for name in vars(transforms) if name.startswith("monarch_")}
    assert names <= set(structures.__all__)
    assert isinstance(structures.monarch_dft(4), Product)
