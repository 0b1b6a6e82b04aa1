"""Projections against singular values, normal equations and perturbations, all in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import milkweed as mw
from milkweed import structures
from milkweed.structures import Chain, Monarch


def draw(m, n, dtype=torch.float64, seed=0):
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def covariance_of(n, dtype=torch.float64, spread=2.0):
    """Inputs that share directions, of sizes from 1 to 10^-spread, as real activations do."""
    mix = torch.diag(torch.logspace(0, -spread, n, dtype=torch.float64)).to(dtype) @ draw(n, n, dtype, 1)
    x = mix @ draw(n, 3 * n, dtype, 2)
    return x @ x.mH / x.shape[1]


def output_error(dense, matrix, covariance):
    difference = dense - matrix.to_dense()
    return float(
        (
            torch.trace(difference @ covariance @ difference.mH).real / torch.trace(dense @ covariance @ dense.mH).real
        ).sqrt()
    )


def discarded_energy(dense, right_shape, left_shape):
    """Singular values beyond each slice's rank, from numpy-style loops over the definition."""
    (k_tot, q_tot, p_tot), (l_tot, s_tot, _) = right_shape, left_shape
    padded = dense.new_zeros(l_tot * s_tot, k_tot * p_tot)
    padded[: dense.shape[0], : dense.shape[1]] = dense
    lost = 0.0
    for k in range(k_tot):
        for l in range(l_tot):  # noqa: E741 - the paper's letter
            rank = sum((k * q_tot + q) % l_tot == l for q in range(q_tot))
            values = torch.linalg.svdvals(padded[l::l_tot, k * p_tot : (k + 1) * p_tot])
            lost += float(values[rank:].square().sum())
    return lost


SHAPES = [
    (64, 64, 4, None),
    (35, 35, 5, None),
    (49, 38, 5, None),
    (100, 63, 4, None),
    (63, 100, 7, None),
    (30, 37, 4, 2),
]
UNEQUAL = [(30, 42, (3, 5), None), (31, 40, (4, 2), 3), (7, 50, (7, 3), 2)]


@pytest.mark.parametrize(("m", "n", "nblocks", "rank"), SHAPES + UNEQUAL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_residual_is_the_discarded_energy(m, n, nblocks, rank, dtype):
    dense = draw(m, n, dtype)
    found = mw.project_monarch(dense, nblocks, rank)
    assert found.matrix.shape == (m, n)
    assert found.matrix.dtype == dtype
    residual = (dense - found.matrix.to_dense()).norm() ** 2
    expected = discarded_energy(dense, found.matrix.right.shape, found.matrix.left.shape)
    assert abs(residual - expected) < 1e-10 * dense.norm() ** 2
    assert found.relative_error == pytest.approx(float((residual**0.5) / dense.norm()), abs=1e-12)
    assert found.output_error is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(1, 3))
def test_residual_for_any_shape(m, n, nblocks, rank):
    nblocks = min(nblocks, m, n)
    rank = min(rank, -(-m // nblocks), -(-n // nblocks))
    dense = draw(m, n)
    found = mw.project_monarch(dense, nblocks, rank)
    residual = (dense - found.matrix.to_dense()).norm() ** 2
    expected = discarded_energy(dense, found.matrix.right.shape, found.matrix.left.shape)
    assert abs(residual - expected) < 1e-10 * dense.norm() ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(64, 64), (49, 38)])
def test_a_monarch_matrix_is_recovered(dtype, shape):
    _, left_shape = structures.monarch_shapes(shape[1], shape[0], 4)
    right_shape, _ = structures.monarch_shapes(shape[1], shape[0], 4)
    exact = Monarch(torch.randn(right_shape, dtype=dtype), torch.randn(left_shape, dtype=dtype), shape)
    assert mw.project_monarch(exact.to_dense(), 4).relative_error < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_half_precision_goes_through_float32(dtype, most):
    right, left = torch.randn(4, 16, 16), torch.randn(4, 16, 16)
    dense = Monarch(right, left).to_dense().to(dtype)
    found = mw.project_monarch(dense, 4)
    assert found.matrix.dtype == dtype
    assert found.relative_error < most
    generic = draw(64, 64).to(dtype)
    wide = mw.project_monarch(generic.double(), 4)
    assert mw.project_monarch(generic, 4).relative_error == pytest.approx(wide.relative_error, rel=1e-3)


@pytest.mark.parametrize("spread", [0, 3, 9])
def test_nearly_exact_matrices_lose_nothing_to_the_gram_matrix(spread):
    """Slices with singular values over many orders of magnitude: the residual must still be the discarded part."""
    values = torch.logspace(0, -spread, 16, dtype=torch.float64)
    blocks = [torch.linalg.qr(draw(16, 16, seed=i))[0] for i in range(4)]
    slices = [(blocks[i] * values) @ blocks[(i + 1) % 4].T for i in range(4)]
    dense = torch.cat([torch.cat([slices[(i + j) % 4] for i in range(4)], 1) for j in range(4)])
    dense = structures.Permutation.stride(4, 16)(dense.T).T  # rows of a slice apart, as left blocks emit them
    for dtype in (torch.float64, torch.float32):
        found = mw.project_monarch(dense.to(dtype), 4, rank=12)
        expected = values[12:].norm() / values.norm()
        assert abs(found.relative_error - expected) < 1e-5 * expected + 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [6, 36, 168, 1000])
def test_any_fourier_matrix_is_read_off(n):
    dft = mw.monarch_dft(n, dtype=torch.complex128)
    monarch, order = dft.factors
    dense = torch.fft.fft(torch.eye(n, dtype=torch.float64))[:, order.index]
    found = structures.project_monarch(dense, monarch.nblocks)
    assert found.relative_error < 1e-12
    assert found.matrix.num_parameters == monarch.num_parameters


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_sizes_whose_squares_float32_cannot_hold(size):
    dense = draw(48, 64, torch.float32)
    found, expected = structures.project_monarch(dense * size, 4), structures.project_monarch(dense, 4)
    assert found.relative_error == pytest.approx(expected.relative_error, rel=1e-5)
    torch.testing.assert_close(found.matrix.to_dense() / size, expected.matrix.to_dense())


def test_a_butterfly_is_a_monarch():
    butterfly = Chain(tuple(torch.randn(32, 2, 2, dtype=torch.float64) for _ in range(6))).to_dense()
    assert mw.project_monarch(butterfly, 8).relative_error < 1e-14


def test_the_transpose_is_a_monarch_up_to_reversal():
    reverse = structures.Permutation.stride(6, 6)
    matrix = Monarch(*(torch.randn(6, 6, 6, dtype=torch.complex128) for _ in range(2)))
    for other in (matrix.T, matrix.inverse(), matrix.H):
        assert mw.project_monarch((reverse @ other @ reverse.T).to_dense(), 6).relative_error < 1e-9
    assert mw.project_monarch(matrix.conj().to_dense(), 6).relative_error < 1e-14


@pytest.mark.parametrize(("m", "n", "nblocks", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_covariance_lowers_the_output_error(m, n, nblocks, rank, dtype):
    dense, covariance = draw(m, n, dtype), covariance_of(n, dtype)
    plain = mw.project_monarch(dense, nblocks, rank)
    weighted = mw.project_monarch(dense, nblocks, rank, input_covariance=covariance)
    refined = mw.project_monarch(dense, nblocks, rank, input_covariance=covariance, refine=4)
    assert weighted.output_error == pytest.approx(output_error(dense, weighted.matrix, covariance), rel=1e-9)
    assert weighted.output_error < output_error(dense, plain.matrix, covariance)
    assert refined.output_error < weighted.output_error
    assert plain.relative_error < weighted.relative_error
    assert len(refined.objectives) == 9
    assert all(b <= a for a, b in zip(refined.objectives, refined.objectives[1:], strict=False))
    assert refined.objectives[-1] == pytest.approx(refined.output_error**2, rel=1e-2)


def test_covariance_of_blocks_alone_makes_weighting_optimal():
    """Without correlation between blocks the weighted slices are the optimum: refinement finds nothing."""
    blocks = torch.stack([covariance_of(12) * (1 + i) for i in range(4)])
    covariance = torch.block_diag(*blocks)
    dense = draw(40, 48)
    weighted = mw.project_monarch(dense, 4, input_covariance=covariance)
    refined = mw.project_monarch(dense, 4, input_covariance=covariance, refine=3)
    assert refined.output_error == pytest.approx(weighted.output_error, rel=1e-4)
    assert mw.project_monarch(dense, 4, input_covariance=torch.eye(48)).output_error == pytest.approx(
        mw.project_monarch(dense, 4).relative_error, rel=1e-10
    )


def test_refinement_is_stationary_at_its_end():
    """No small change of either factor improves what many rounds arrive at."""
    dense, covariance = draw(20, 24), covariance_of(24, spread=1)

    def slope(rounds):
        found = mw.project_monarch(dense, 4, input_covariance=covariance, refine=rounds).matrix
        factors = [t.clone().requires_grad_() for t in (found.right, found.left)]
        difference = dense - Monarch(*factors, crop=(20, 24)).to_dense()
        grads = torch.autograd.grad(torch.trace(difference @ covariance @ difference.T), factors)
        return max(float(grad.norm() * factor.detach().norm()) for grad, factor in zip(grads, factors, strict=True))

    assert slope(2000) < 1e-3 * slope(0)


def test_inputs_that_are_always_zero():
    covariance = covariance_of(24)
    covariance[:, :7] = covariance[:7] = 0
    found = mw.project_monarch(draw(20, 24), 4, input_covariance=covariance, refine=2)
    assert found.matrix.to_dense().isfinite().all()
    assert found.output_error < 1


def test_several_weights_of_the_same_inputs():
    weights = [draw(16, 24), draw(40, 24, seed=5)]
    found = mw.project_monarch(weights, 4, input_covariance=covariance_of(24))
    assert [f.matrix.shape for f in found] == [(16, 24), (40, 24)]
    alone = mw.project_monarch(weights[1], 4, input_covariance=covariance_of(24))
    assert torch.equal(found[1].matrix.right, alone.matrix.right)


def test_threads_are_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = mw.project_monarch(draw(64, 64), 4)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = mw.project_monarch(draw(64, 64), 4)
    finally:
        torch.set_num_threads(before)
    assert two.relative_error == pytest.approx(one.relative_error, rel=1e-12)


def nudged(matrix, covariance, dense):
    """The objective's slope along every parameter; zero at an optimum of a linear family."""
    tensors = [t.detach().clone().requires_grad_() for _, t in matrix.named_tensors()]
    remaining = iter(tensors)
    difference = dense - matrix._map(lambda _: next(remaining)).to_dense()
    loss = torch.trace(difference @ covariance @ difference.T)
    return max(float(g.norm()) for g in torch.autograd.grad(loss, tensors)) / float(
        torch.trace(dense @ covariance @ dense.T)
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "project",
    [
        lambda w, c: structures.project_block_diagonal(w, 4, input_covariance=c),
        lambda w, c: structures.project_flat_butterfly(w, 4, input_covariance=c),
        lambda w, c: structures.project_flat_butterfly(w, 8, 2, input_covariance=c),
        lambda w, c: structures.project_low_rank(w, 3, input_covariance=c),
    ],
    ids=["block-diagonal", "flat-butterfly", "flat-butterfly-2", "low-rank"],
)
def test_structures_with_an_optimum(project, weighted):
    dense = draw(21, 26)
    covariance = covariance_of(26, spread=1) if weighted else torch.eye(26, dtype=torch.float64)
    found = project(dense, covariance if weighted else None)
    assert nudged(found.matrix, covariance, dense) < 1e-4
    if weighted:
        assert found.output_error == pytest.approx(output_error(dense, found.matrix, covariance), rel=1e-8)
        assert found.output_error < output_error(dense, project(dense, None).matrix, covariance)


def test_low_rank_is_the_truncated_decomposition_of_the_weighted_matrix():
    dense, covariance = draw(21, 26), covariance_of(26, spread=1)
    root = torch.linalg.cholesky(covariance)
    values = torch.linalg.svdvals(dense @ root)
    found = structures.project_low_rank(dense, 5, input_covariance=covariance)
    assert found.output_error == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-8)


@pytest.mark.parametrize(
    "project", [structures.project_diagonal, structures.project_circulant, structures.project_toeplitz]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_linear_families_are_orthogonal_projections(project, dtype):
    dense = draw(9, 9, dtype)
    found = project(dense)
    again = project(found.matrix.to_dense())
    torch.testing.assert_close(again.matrix.to_dense(), found.matrix.to_dense())
    assert again.relative_error < 1e-14
    other = project(draw(9, 9, dtype, 3)).matrix.to_dense()
    assert ((dense - found.matrix.to_dense()).conj() * other).sum().abs() < 1e-10


def test_rectangular_toeplitz():
    matrix = structures.Toeplitz(torch.randn(5, dtype=torch.float64), torch.randn(2, dtype=torch.float64))
    assert structures.project_toeplitz(matrix.to_dense()).relative_error < 1e-14


@pytest.mark.parametrize("digits", [(2, 3, 4), (2, 2, 2, 2), (12, 2), (24,)])
def test_a_chain_is_recovered(digits):
    exact = Chain.identity(digits, dtype=torch.float64)._map(torch.randn_like)
    found = structures.project_chain(exact.to_dense(), digits)
    assert found.relative_error < 1e-12
    assert [f.shape for f in found.matrix.factors] == [f.shape for f in exact.factors]


def test_pixelfly_improves_with_every_round():
    dense = draw(30, 37)
    errors = [structures.project_pixelfly(dense, 4, 3, rounds=rounds).relative_error for rounds in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < structures.project_flat_butterfly(dense, 4).relative_error
    weighted = structures.project_pixelfly(dense, 4, 3, input_covariance=covariance_of(37))
    assert (
        weighted.output_error
        < structures.project_flat_butterfly(dense, 4, input_covariance=covariance_of(37)).output_error
    )


def test_projection_of_zero_and_of_one_entry():
    zero = mw.project_monarch(torch.zeros(16, 16), 4)
    assert zero.relative_error == 0
    assert zero.matrix.to_dense().norm() == 0
    one = mw.project_monarch(torch.tensor([[3.0]]), 1)
    torch.testing.assert_close(one.matrix.to_dense(), torch.tensor([[3.0]]))


BAD = torch.ones(16, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mw.project_monarch(BAD, 17), ValueError, "nblocks=17 needs in_features >= 17; got in_features=16"),
        (lambda: mw.project_monarch(BAD, 0), ValueError, "nblocks must be at least 1"),
        (lambda: mw.project_monarch(BAD, 4, 5), ValueError, r"rank must be in 1 \.\. 4"),
        (lambda: mw.project_monarch(BAD, 8), ValueError, "give the rank per slice"),
        (lambda: mw.project_monarch(BAD * torch.nan, 4), ValueError, "dense must be finite"),
        (lambda: mw.project_monarch(BAD.long(), 4), TypeError, "dense must be a floating-point or complex tensor"),
        (lambda: mw.project_monarch(BAD.to_sparse(), 4), TypeError, "dense must be a strided tensor"),
        (lambda: mw.project_monarch(torch.ones(3), 1), ValueError, "dense must have 2 dimensions"),
        (lambda: mw.project_monarch(BAD, 4, refine=1), ValueError, "needs input_covariance"),
        (lambda: mw.project_monarch(BAD, 4, input_covariance=torch.eye(15)), ValueError, r"must be \(16, 16\)"),
        (lambda: mw.project_monarch(BAD, 4, input_covariance=0 * BAD), ValueError, "no calibration sample reached"),
        (lambda: mw.project_monarch(BAD, 4, input_covariance=BAD / 0), ValueError, "input_covariance must be finite"),
        (lambda: mw.project_monarch(BAD, 4, input_covariance=BAD.triu()), ValueError, "must be Hermitian"),
        (lambda: mw.project_monarch(BAD, 4, input_covariance=-BAD), ValueError, "non-negative diagonal"),
        (lambda: structures.project_low_rank(BAD, 17), ValueError, r"rank must be in 1 \.\. 16"),
        (lambda: structures.project_block_diagonal(BAD, 17), ValueError, r"nblocks must be in 1 \.\. 16"),
        (lambda: structures.project_flat_butterfly(BAD, 3), ValueError, "nblocks must be a power of two"),
        (lambda: structures.project_flat_butterfly(BAD, 4, 4), ValueError, "neighbours=4"),
        (lambda: structures.project_pixelfly(BAD, 4, rounds=0), ValueError, "rounds must be at least 1"),
        (lambda: structures.project_chain(BAD, (2, 4)), ValueError, r"digits must multiply to 16; got \(2, 4\)"),
        (lambda: structures.project_diagonal(BAD[:3]), ValueError, "dense must be square"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("decay", [0.3, 0.7, 0.9, 1.0, 1.2, 1.5])
@pytest.mark.parametrize(("size", "rank"), [(256, 64), (384, 300)])
def test_float32_reaches_the_optimum_whatever_little_is_discarded(size, rank, decay):
    generator = torch.Generator().manual_seed(size)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q for _ in range(2)
    )
    dense = ((left * torch.arange(1, size + 1) ** -decay) @ right).float()
    optimum = torch.linalg.svdvals(dense.double())[rank:].norm() / dense.double().norm()
    found = structures.project_low_rank(dense, rank)
    actual = (dense.double() - found.matrix.to(dtype=torch.float64).to_dense()).norm() / dense.double().norm()
    assert actual == pytest.approx(float(optimum), rel=1e-5)
    assert found.relative_error == pytest.approx(float(actual), rel=1e-5)
