"""Factors found from the entries of a product alone, against the product that was multiplied out."""

import math

import pytest
import torch

import milkweed as mw
from milkweed.structures import Circulant, Factorization, Monarch, factorize_monarch_product
from milkweed.structures.factorize import _better_a, _better_d, _further, _start

SIZES = [(64, 4), (64, 8), (64, 16), (256, 16)]
DTYPES = [torch.float64, torch.complex128]
sizes = pytest.mark.parametrize(("n", "b"), SIZES)
both = pytest.mark.parametrize("dtype", DTYPES, ids=["real", "complex"])


@pytest.fixture(autouse=True)
def double_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def from_blocks(a, d, c):
    """Entry (s m + i, t m + j) is entry (s, t) of A_i diag(D_ij) C_j; a sum over k."""
    m, b = a.shape[:2]
    return torch.einsum("isk,ijk,jkt->sitj", a, d, c).reshape(m * b, m * b)


def draw(n, b, dtype=torch.float64):
    """Blocks of a product and the product itself, of Frobenius norm 1."""
    m = n // b
    a, d, c = (torch.randn(shape, dtype=dtype) for shape in ((m, b, b), (m, m, b), (m, b, b)))
    d = d / torch.linalg.norm(from_blocks(a, d, c))
    return a, d, c, from_blocks(a, d, c)


def noise(dense, size):
    drawn = torch.randn_like(dense)
    return size * torch.linalg.norm(dense) * drawn / torch.linalg.norm(drawn)


def check(found, dense, b, bound):
    """The factors have the promised shapes, their product is what was measured, and it is near enough."""
    n = len(dense)
    m = n // b
    for factor in found.factors:
        assert factor.right.shape == (b, m, m)
        assert factor.left.shape == (m, b, b)
    right = found.factors[1].right
    assert torch.equal(right, torch.eye(m).to(right.dtype).expand(b, m, m))
    precise = [factor.to(dtype=torch.complex128).to_dense() for factor in found.factors]
    error = torch.linalg.norm(precise[0] @ precise[1].mH - dense) / torch.linalg.norm(dense)
    assert error <= bound
    assert found.relative_error == pytest.approx(float(error), rel=1e-3, abs=2e-15)
    assert torch.allclose(found.matrix.to_dense().to(torch.complex128), precise[0] @ precise[1].mH, atol=1e-2)


def test_the_blocks_in_these_tests_are_those_of_two_monarchs():
    right, left, c = torch.randn(3, 4, 4), torch.randn(4, 3, 3), torch.randn(4, 3, 3)
    identity = torch.eye(4).expand(3, 4, 4)
    dense = from_blocks(left, right.permute(1, 2, 0), c)
    product = Monarch(right, left).to_dense() @ Monarch(identity, c.mT).to_dense().mT
    assert torch.allclose(dense, product)


@sizes
@both
def test_random_products_are_recovered(n, b, dtype):
    m = n // b
    pair = [Monarch(torch.randn(b, m, m, dtype=dtype), torch.randn(m, b, b, dtype=dtype)).to_dense() for _ in range(2)]
    dense = pair[0] @ pair[1].mH
    check(factorize_monarch_product(dense, b), dense, b, 1e-13)


@sizes
@both
def test_the_first_fit_is_good_already(n, b, dtype):
    dense = draw(n, b, dtype)[-1]
    check(factorize_monarch_product(dense, b, refine=0), dense, b, 1e-9)


def test_a_large_product():
    dense = draw(1024, 32)[-1]
    check(factorize_monarch_product(dense, 32, refine=2), dense, 32, 1e-12)


@sizes
@both
def test_noise_is_fitted_to_below_its_own_size(n, b, dtype):
    dense = draw(n, b, dtype)[-1]
    noisy = dense + noise(dense, 1e-6)
    first, found = (factorize_monarch_product(noisy, b, refine=rounds) for rounds in (0, 500))
    assert found.relative_error < first.relative_error
    check(found, noisy, b, 1e-6)
    # The parameters take up part of the noise, as in any least squares; what is left of it is in the residual.
    parameters = 2 * n * b + n * n // b
    assert found.relative_error == pytest.approx(1e-6 * math.sqrt(1 - parameters / n**2), rel=0.1)


@both
def test_well_conditioned_products_bear_much_noise(dtype):
    a, c = (torch.linalg.qr(torch.randn(8, 8, 8, dtype=dtype)).Q for _ in range(2))
    dense = from_blocks(a, torch.randn(8, 8, 8, dtype=dtype), c)
    noisy = dense + noise(dense, 0.03)
    check(factorize_monarch_product(noisy, 8), noisy, 8, 0.03)


@both
def test_no_step_increases_the_error(dtype):
    dense = draw(24, 4, dtype)[-1]
    dense = dense + noise(dense, 0.3)
    blocks = dense.view(4, 6, 4, 6).permute(1, 0, 3, 2).contiguous()
    fit = _start(blocks, 1e15)
    blocks = blocks.to(fit.a.dtype)
    before = fit
    for _ in range(20):
        for step in (_better_d, _better_a, lambda fit: _better_a(fit.transposed()).transposed()):
            last, fit = fit, step(fit)
            assert torch.linalg.norm(fit.residual) <= torch.linalg.norm(last.residual) * (1 + 1e-12)
            kept = from_blocks(fit.a, fit.d, fit.c).view(4, 6, 4, 6).permute(1, 0, 3, 2)
            assert torch.allclose(blocks - kept, fit.residual, atol=1e-10)
    assert torch.linalg.norm(_further(blocks, before, fit, 0.0).residual - fit.residual) < 1e-10


@both
def test_half_steps_are_least_squares(dtype):
    dense = draw(6, 2, dtype)[-1]
    blocks = (dense + noise(dense, 0.1)).view(2, 3, 2, 3).permute(1, 0, 3, 2).contiguous()
    fit = _start(blocks, 1e15)
    blocks = blocks.to(fit.a.dtype)
    d = _better_d(fit).d
    a = _better_a(fit)
    for i in range(3):
        for j in range(3):
            columns = torch.stack([torch.outer(fit.a[i, :, k], fit.c[j, k]).flatten() for k in range(2)], 1)
            best = torch.linalg.lstsq(columns, blocks[i, :, j].flatten()[:, None]).solution
            assert torch.allclose(d[i, j], best[:, 0])
        x = torch.cat([fit.d[i, j, :, None] * fit.c[j] for j in range(3)], 1)
        best = torch.linalg.lstsq(x.mT, blocks[i].flatten(1).mT).solution.mT
        assert torch.allclose(a.a[i], best / torch.linalg.vector_norm(best, dim=0))


def test_complex_eigenvalues_of_a_real_matrix():
    # C_1 has pairs of conjugate rows, D_ij pairs of conjugate entries: every block is real.
    half = [torch.randn(shape, dtype=torch.complex128) for shape in ((8, 6, 3), (8, 8, 3), (8, 3, 6))]
    a, d, c = (torch.cat([x, x.conj()], axis) for x, axis in zip(half, (2, 2, 1), strict=True))
    dense = from_blocks(a, d, c)
    assert dense.imag.abs().max() < 1e-12
    found = factorize_monarch_product(dense.real, 6)
    assert found.factors[0].dtype == torch.complex128
    check(found, dense.real, 6, 1e-13)


def test_real_factors_where_the_eigenvalues_are_real():
    found = factorize_monarch_product(draw(64, 8)[-1], 8)
    assert {factor.dtype for factor in found.factors} == {torch.float64}


REPEATED = {
    "kronecker": lambda b, m: torch.kron(torch.randn(b, b), torch.randn(m, m)),
    "hadamard": lambda b, m: torch.kron(hadamard(b), hadamard(m)),
    "monarch": lambda b, m: Monarch(torch.randn(b, m, m), torch.randn(m, b, b)).to_dense(),
    "monarch-transposed": lambda b, m: Monarch(torch.randn(b, m, m), torch.randn(m, b, b)).to_dense().mT,
    "circulant": lambda b, m: Circulant(torch.randn(b * m)).to_dense(),
    "circulant-symmetric": lambda b, m: Circulant(torch.fft.fft(torch.rand(b * m)).real).to_dense(),
    "circulant-complex": lambda b, m: Circulant(torch.randn(b * m, dtype=torch.complex128)).to_dense(),
    "pairs": lambda b, m: from_blocks(
        torch.randn(m, b, b), torch.randn(m, m, b // 2).repeat_interleave(2, -1), torch.randn(m, b, b)
    ),
}


def hadamard(size):
    return torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])


@pytest.mark.parametrize(("n", "b"), [(16, 4), (64, 4), (64, 8), (64, 16)])
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_eigenvalues(name, n, b):
    dense = REPEATED[name](b, n // b)
    found = factorize_monarch_product(dense, b)
    check(found, dense, b, 1e-12)
    if "circulant" not in name and name != "pairs":
        assert found.factors[0].dtype == dense.dtype


def test_singular_blocks_are_gone_round():
    a, d, c, _ = draw(64, 8)
    d[0] = d[0] * torch.eye(8)[0]  # one block row: all but the first of its blocks are zero in all but one entry
    d[0, 1] = torch.randn(8)
    d[:, 3] = 0
    d[5, 3] = 1
    dense = from_blocks(a, d, c)
    check(factorize_monarch_product(dense, 8), dense, 8, 1e-12)


@pytest.mark.parametrize("b", [1, 6])
@both
def test_every_matrix_is_a_product_with_the_extreme_block_sizes(b, dtype):
    dense = torch.randn(6, 6, dtype=dtype)
    dense[0] = 0
    check(factorize_monarch_product(dense, b), dense, b, 1e-15)
    assert factorize_monarch_product(torch.zeros(6, 6), b).relative_error == 0


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 2e-7), (torch.complex64, 2e-7), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
def test_low_precision(dtype, bound):
    a, c = (torch.linalg.qr(torch.randn(8, 4, 4, dtype=torch.float64)).Q for _ in range(2))
    dense = from_blocks(a, torch.randn(8, 8, 4, dtype=torch.float64), c).to(dtype)
    found = factorize_monarch_product(dense, 4)
    assert {factor.dtype for factor in found.factors} == {dtype}
    check(found, dense.to(torch.complex128), 4, bound)


def test_complex_factors_of_a_half_precision_matrix_are_complex64():
    found = factorize_monarch_product(Circulant(torch.randn(16)).to_dense().half(), 4)
    assert found.factors[0].dtype == torch.complex64


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_any_scale(scale):
    dense = draw(16, 4)[-1]
    assert factorize_monarch_product(scale * dense, 4).relative_error < 1e-13


def test_a_matrix_that_is_no_product_gets_a_fit_and_its_error():
    dense = torch.randn(16, 16, dtype=torch.float64)
    found = factorize_monarch_product(dense, 4)
    check(found, dense, 4, 0.9)
    assert found.relative_error > 0.1


def test_input_and_random_state_are_left_alone():
    dense = draw(16, 4)[-1].mT.requires_grad_()
    copy, state = dense.detach().clone(), torch.get_rng_state()
    found, again = (factorize_monarch_product(dense, 4) for _ in range(2))
    assert isinstance(found, Factorization)
    assert torch.equal(dense, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.factors[0].left, again.factors[0].left)
    assert not found.factors[0].left.requires_grad


def shear(b, m):
    """Blocks that commute and are invertible, but share one eigenvector only."""
    nilpotent = torch.diag(torch.ones(b - 1, dtype=torch.float64), 1)
    blocks = torch.eye(b) + torch.randn(m, m, 1, 1, dtype=torch.float64) * nilpotent
    return blocks.permute(2, 0, 3, 1).reshape(b * m, b * m)


@pytest.mark.parametrize(
    ("build", "b", "error", "message"),
    [
        (lambda: torch.randn(4, 6), 2, ValueError, r"dense must be square; got shape \(4, 6\)"),
        (lambda: torch.randn(4), 2, ValueError, "dense must have 2 dimensions"),
        (lambda: torch.ones(4, 4, dtype=torch.int64), 2, TypeError, "dense must be a floating-point or complex"),
        (lambda: [[1.0]], 1, TypeError, "got list"),
        (lambda: torch.randn(12, 12), 5, ValueError, "must divide n = 12; got 5, the nearest divisor is 4"),
        (lambda: torch.randn(12, 12), 0, ValueError, "got 0, the nearest divisor is 1"),
        (lambda: torch.randn(12, 12), 24, ValueError, "got 24, the nearest divisor is 12"),
        (lambda: torch.randn(4, 4), 2.0, TypeError, r"block_size must be an integer; got 2\.0"),
        (lambda: torch.randn(4, 4).log(), 2, ValueError, "dense must be finite; got"),
        (lambda: torch.eye(8), 2, ValueError, r"singular blocks for block_size 2: .* 4\.5e\+15 .* dense\[0::4, 1::4\]"),
        (lambda: torch.zeros(8, 8), 2, ValueError, "too many singular blocks"),
        (lambda: torch.ones(8, 8), 4, ValueError, r"block \(0, 0\) .* has (inf|\d\.\de\+\d+)"),
    ],
)
def test_bad_input(build, b, error, message):
    with pytest.raises(error, match=message):
        factorize_monarch_product(build(), b)


def test_bad_refine():
    with pytest.raises(ValueError, match="refine must be 0 or more rounds; got -1"):
        factorize_monarch_product(torch.randn(4, 4), 2, refine=-1)


@pytest.mark.parametrize("b", [2, 3, 4])
def test_blocks_without_a_basis_of_eigenvectors_get_a_fit_and_its_error(b):
    # Not a product, yet products come as near as one likes, with ever larger factors.
    assert 1e-5 < factorize_monarch_product(shear(b, 4), b).relative_error < 0.1


def test_no_basis_at_all(monkeypatch):
    monkeypatch.setattr("milkweed.structures.factorize._DEPENDENT", 0.5)
    with pytest.raises(ValueError, match=r"linearly dependent \(condition number above .*; try another block_size"):
        factorize_monarch_product(draw(16, 4)[-1], 4)


def test_exported_at_the_top():
    assert mw.factorize_monarch_product is factorize_monarch_product
