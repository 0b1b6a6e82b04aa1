"""Discretisations, diagonal and dense, against formulas, scipy and exact integration."""

import numpy as np
import pytest
import scipy.signal
import torch

from milkweed import ssm


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_discretisation_against_the_formulas(method):
    real = -torch.logspace(-8, 2, 40, dtype=torch.float64)
    imag = torch.cat([-torch.logspace(-8, 3, 20), torch.zeros(1), torch.logspace(-8, 3, 20)]).double()
    z = torch.complex(*torch.meshgrid(real, imag, indexing="ij"))
    exponent, scale = (torch.view_as_complex(part) for part in ssm.discretize_diagonal(torch.view_as_real(z), method))
    if method == "zoh":
        expected_a = torch.exp(z)
        # The quotient loses digits for small z; its series does not.
        series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
        expected_b = torch.where(z.abs() < 1e-3, series, (torch.exp(z) - 1) / z)
    else:
        expected_a, expected_b = (1 + z / 2) / (1 - z / 2), 1 / (1 - z / 2)
    assert (exponent.exp() - expected_a).abs().max() < 1e-12
    assert (scale - expected_b).abs().max() < 1e-12
    assert (exponent.real <= 0).all()


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_discretisation_is_differentiable_everywhere(method):
    points = torch.tensor([[0.0, 0.0], [-1e-9, 1e-9], [-2.0, 0.0], [-3.0, 0.0], [-0.01, 0.0], [-0.5, 40.0]]).double()
    points.requires_grad_()
    exponent, scale = ssm.discretize_diagonal(points, method)
    (exponent.sum() + scale.sum()).backward()
    assert points.grad.isfinite().all()
    # Not on the cut of the logarithm (-3), where the angle jumps from π to -π, nor at its pole (-2).
    away = points.detach()[[1, 4, 5]].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ssm.discretize_diagonal(z, method), (away,))


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("size", [1e10, 1e19, 1e25, 1e37])
def test_steps_whose_square_is_no_float32(method, size):
    angle = torch.tensor([0.501, 0.75, 0.999, 1.0]).double() * torch.pi
    z = torch.polar(torch.full_like(angle, size), angle)
    narrow = torch.view_as_real(z.to(torch.complex64)).requires_grad_()
    exponent, scale = ssm.discretize_diagonal(narrow, method)
    (exponent.sum() + (size * scale).sum()).backward()
    assert narrow.grad.isfinite().all()
    assert (exponent[..., 0] <= 0).all()
    # Nothing is left of exp(z), and the bilinear transform has come near its limit, -1.
    found = torch.view_as_complex(scale.detach()).to(torch.complex128)
    expected = (-1 if method == "zoh" else -2) / z
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    if method == "bilinear":
        torch.testing.assert_close(exponent[..., 1].abs().double(), torch.full_like(angle, torch.pi))


def test_a_constant_input_settles():
    # Both discretisations keep the fixed point -a^-1 b of x' = a x + b.
    a = torch.tensor([[-0.5, 3.0], [-2.0, 0.0]]).double()
    for method in ("zoh", "bilinear"):
        exponent, scale = (torch.view_as_complex(p) for p in ssm.discretize_diagonal(0.1 * a, method))
        settled = 0.1 * scale / (1 - exponent.exp())
        assert (settled + 1 / torch.view_as_complex(a)).abs().max() < 1e-12


def random_system(*lead, size=5, inputs=None):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(*lead, size, size, dtype=torch.float64, generator=generator)
    shape = (*lead, size) if inputs is None else (*lead, size, inputs)
    return A, torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("inputs", [1, 3])
def test_dense_against_scipy(method, inputs):
    A, B = random_system(inputs=inputs)
    C, D = np.zeros((1, 5)), np.zeros((1, inputs))
    expected = scipy.signal.cont2discrete((A.numpy(), B.numpy(), C, D), 0.3, method)
    a_bar, b_bar = ssm.discretize(A, B, 0.3, method)
    assert np.abs(a_bar.numpy() - expected[0]).max() < 1e-12
    assert np.abs(b_bar.numpy() - expected[1]).max() < 1e-12
    vector = ssm.discretize(A, B[:, 0], 0.3, method)[1]
    assert torch.allclose(vector, b_bar[:, 0], atol=1e-14)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_dense_batches_and_steps(method):
    A, B = random_system(2, 3, inputs=2)
    dt = torch.linspace(0.1, 0.6, 6).double().reshape(2, 3)
    a_bar, b_bar = ssm.discretize(A, B, dt, method)
    assert (a_bar.shape, b_bar.shape) == ((2, 3, 5, 5), (2, 3, 5, 2))
    for i in range(2):
        for j in range(3):
            a, b = ssm.discretize(A[i, j], B[i, j], dt[i, j], method)
            assert torch.allclose(a_bar[i, j], a, atol=1e-13)
            assert torch.allclose(b_bar[i, j], b, atol=1e-13)
    # One system with many steps, float32 kept.
    a_bar, b_bar = ssm.discretize(A[0, 0].float(), B[0, 0, :, 0].float(), dt, method)
    assert (a_bar.shape, b_bar.shape, a_bar.dtype) == ((2, 3, 5, 5), (2, 3, 5), torch.float32)


def test_dense_zoh_of_a_singular_matrix():
    # A double integrator: x = [t u²/2, t u].
    A = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double()
    a_bar, b_bar = ssm.discretize(A, torch.tensor([0.0, 1.0]).double(), 0.5)
    assert torch.allclose(a_bar, torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double())
    assert torch.allclose(b_bar, torch.tensor([0.125, 0.5]).double())


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_dense_is_the_diagonal_one(method):
    Lambda = ssm.diagonal("legs", 8)
    ones = torch.ones(4, dtype=torch.complex128)
    a_bar, b_bar = ssm.discretize(torch.diag(Lambda), ones, 0.1, method)
    exponent, scale = (
        torch.view_as_complex(part) for part in ssm.discretize_diagonal(torch.view_as_real(0.1 * Lambda), method)
    )
    assert torch.allclose(a_bar, torch.diag(exponent.exp()), atol=1e-13)
    assert torch.allclose(b_bar, 0.1 * scale, atol=1e-13)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_dense_gradients(method):
    A, B = (value.requires_grad_() for value in random_system(size=3))
    dt = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: ssm.discretize(*args, method), (A, B, dt))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.discretize_diagonal(torch.zeros(1, 2), "euler"), "discretization='euler' is unknown"),
        (lambda: ssm.discretize(torch.eye(2), torch.ones(2), 0.1, "bilinar"), "did you mean 'bilinear'"),
        (lambda: ssm.discretize(torch.ones(2, 3), torch.ones(2), 0.1), r"A must be \(..., N, N\); got shape \(2, 3\)"),
        (lambda: ssm.discretize(torch.eye(2), torch.ones(3), 0.1), r"N=2; got shape \(3,\)"),
        (lambda: ssm.discretize(torch.eye(2), torch.ones(1, 2, 1), 0.1), "B must be"),
        (lambda: ssm.discretize(torch.eye(2), torch.ones(2), 0.0), "dt must be above 0 and finite; got 0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(method, dtype):
    A, B = ssm.hippo("legs", 4)
    expected = ssm.discretize(A, B, 0.1, method)
    found = ssm.discretize(A.to(dtype), B.to(dtype), 0.1, method)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"A": torch.tensor([[-1, 0], [0, -2]])}, TypeError, r"A must be floating point.*use A.double"),
        ({"dt": torch.tensor([-1.0])}, ValueError, "dt must be above 0 and finite"),
        ({"dt": torch.tensor([1.0, float("inf")])}, ValueError, "dt must be above 0 and finite"),
        ({"dt": float("nan")}, ValueError, "dt must be above 0 and finite"),
        ({"dt": torch.tensor([1j])}, TypeError, "dt must be real"),
    ],
)
def test_what_cannot_be_discretised(change, error, message):
    arguments = {"A": -torch.eye(2), "B": torch.ones(2), "dt": 0.1} | change
    with pytest.raises(error, match=message):
        ssm.discretize(**arguments)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_low_rank_corrections_are_those_of_the_dense_rule(rank, size):
    generator = torch.Generator().manual_seed(rank + size)
    draw = {"generator": generator, "dtype": torch.float64}
    A, B, dt = torch.randn(4, size, 2, **draw), torch.randn(4, size, 2, **draw), torch.rand(4, **draw) + 0.01
    A = torch.stack([-A[..., 0].abs(), 10 * A[..., 1]], -1).requires_grad_()
    P = (3 * torch.randn(rank, 4, size, 2, **draw)).requires_grad_()
    inputs = (A, P, B.requires_grad_(), dt.requires_grad_())

    def dense(A, P, B, dt):
        complex_A, complex_B = torch.view_as_complex(A), torch.view_as_complex(B)
        return ssm.discretize(
            *ssm.real_dplr(complex_A, torch.view_as_complex(P).movedim(0, 1), complex_B), dt, "bilinear"
        )

    found, expected = ssm.discretize_dplr(*inputs), dense(*inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    sums = [sum((part * torch.arange(part.numel()).view_as(part)).sum() for part in each) for each in (found, expected)]
    for a, b in zip(*(torch.autograd.grad(each, inputs, allow_unused=rank == 0) for each in sums), strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    # Along a random direction where entry by entry would take minutes; above, the dense rule gives each entry.
    assert torch.autograd.gradcheck(ssm.discretize_dplr, inputs, fast_mode=size > 3)
