"""Published identities of HiPPO matrices, S4D initial values and discretisations."""

import math

import pytest
import torch

from milkweed import ssm


def test_legs_matrix_and_identities():
    A, B = ssm.hippo("legs", 64)
    n = torch.arange(64, dtype=torch.float64)
    assert torch.allclose(A.diagonal(), -(n + 1))
    assert A[5, 2] == -math.sqrt(11) * math.sqrt(5)
    assert (A.triu(1) == 0).all()
    P = torch.sqrt(n + 0.5)
    skew = A + torch.outer(P, P) + 0.5 * torch.eye(64)
    assert (skew + skew.T).abs().max() < 1e-12
    settled = -torch.linalg.solve(A, B)
    assert (settled - torch.eye(64, dtype=torch.float64)[0]).abs().max() < 1e-12


def test_legs_kernels_are_warped_legendre_polynomials():
    import numpy as np

    A, B = ssm.hippo("legs", 16)
    for t in (0.0, 0.3, 1.0, 4.0):
        kernel = torch.linalg.matrix_exp(t * A) @ B
        x = 2 * math.exp(-t) - 1
        for n in range(16):
            legendre = np.polynomial.legendre.Legendre.basis(n)(x)
            assert abs(kernel[n].item() - math.sqrt(2 * n + 1) * math.exp(-t) * legendre) < 1e-11


def test_legs_spectrum():
    assert torch.allclose(ssm.diagonal("legs", 4).imag, torch.tensor([0.556501, 4.603293]).double(), atol=1e-6)
    expected = torch.tensor([0.427489, 1.957794, 5.354209, 19.857410]).double()
    assert torch.allclose(ssm.diagonal("legs", 8).imag, expected, atol=1e-6)
    assert abs(ssm.diagonal("legs", 64).imag.max() * math.pi / 64**2 - 0.99960) < 1e-5
    assert (ssm.diagonal("legs", 64).real == -0.5).all()


def test_other_initial_values():
    assert torch.allclose(
        ssm.diagonal("lin", 6), torch.tensor([-0.5, -0.5 + 1j * math.pi, -0.5 + 2j * math.pi]).to(torch.complex128)
    )
    inv = [4 / math.pi * (4 / (2 * n + 1) - 1) for n in range(2)]
    assert torch.allclose(ssm.diagonal("inv", 4).imag, torch.tensor(inv).double())
    assert ssm.diagonal("real", 3).tolist() == [-1, -2, -3]
    generator = torch.Generator().manual_seed(3)
    rand = ssm.diagonal("rand", 4096, generator=generator)
    assert abs(rand.imag.log().mean()) < 0.1
    assert abs(rand.imag.log().std() - 1) < 0.1
    generator.manual_seed(3)
    assert torch.equal(ssm.diagonal("rand", 4096, generator=generator), rand)


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


def test_a_constant_input_settles():
    # Both discretisations keep the fixed point -a^-1 b of x' = a x + b.
    a = torch.tensor([[-0.5, 3.0], [-2.0, 0.0]]).double()
    for method in ("zoh", "bilinear"):
        exponent, scale = (torch.view_as_complex(p) for p in ssm.discretize_diagonal(0.1 * a, method))
        settled = 0.1 * scale / (1 - exponent.exp())
        assert (settled + 1 / torch.view_as_complex(a)).abs().max() < 1e-12


def test_timescale():
    log_dt = ssm.log_timescale(10_000, 1e-4, 1e-1, generator=torch.Generator().manual_seed(0))
    assert log_dt.min() >= math.log(1e-4)
    assert log_dt.max() <= math.log(1e-1)
    assert abs(log_dt.mean() - math.log(1e-4 * 1e-1) / 2) < 0.05
    with pytest.raises(ValueError, match="0 < dt_min <= dt_max, both finite; got dt_min=0"):
        ssm.log_timescale(3, 0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.hippo("leg", 4), "did you mean 'legs'"),
        (lambda: ssm.hippo("legs", 0), "d_state must be at least 1"),
        (lambda: ssm.diagonal("lim", 4), "did you mean 'lin'"),
        (lambda: ssm.diagonal("lin", 5), "even d_state"),
        (lambda: ssm.discretize_diagonal(torch.zeros(1, 2), "euler"), "discretization='euler' is unknown"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
