"""Initial spectra, and the theorem that the normal part of LegS alone tends to LegS."""

import math

import numpy as np
import pytest
import torch

from milkweed import ssm


def test_legs_spectrum():
    assert torch.allclose(ssm.diagonal("legs", 4).imag, torch.tensor([0.556501, 4.603293]).double(), atol=1e-6)
    expected = torch.tensor([0.427489, 1.957794, 5.354209, 19.857410]).double()
    assert torch.allclose(ssm.diagonal("legs", 8).imag, expected, atol=1e-6)
    assert abs(ssm.diagonal("legs", 64).imag.max() * math.pi / 64**2 - 0.99960) < 1e-5
    assert (ssm.diagonal("legs", 64).real == -0.5).all()


def test_formulas():
    N, pi = 8, math.pi
    expected = {
        "inv": [N / pi * (N / (2 * n + 1) - 1) for n in range(4)],
        "inv2": [N / pi * (N / (n + 1) - 1) for n in range(4)],
        "lin": [pi * n for n in range(4)],
        "quad": [(1 + 2 * n) ** 2 / pi for n in range(4)],
        "fout": [pi * n for n in range(4)],
    }
    for name, imag in expected.items():
        values = ssm.diagonal(name, N)
        assert values.dtype == torch.complex128
        assert values.imag.tolist() == pytest.approx(imag)
        assert (values.real == -0.5).all()
    assert ssm.diagonal("real", 3).tolist() == [-1, -2, -3]
    assert ssm.diagonal("real", 3).dtype == torch.float64
    assert torch.allclose(ssm.diagonal("fout", 16).imag, ssm.nplr("fout", 16).Lambda.imag)


def test_inv_is_near_legs():
    legs, inv = ssm.diagonal("legs", 256).imag.flip(0), ssm.diagonal("inv", 256).imag
    assert (legs[:3] / inv[:3] - 1).abs().max() < 0.02


def test_rand():
    generator = torch.Generator().manual_seed(3)
    rand = ssm.diagonal("rand", 4096, generator=generator)
    assert abs(rand.imag.log().mean()) < 0.1
    assert abs(rand.imag.log().std() - 1) < 0.1
    generator.manual_seed(3)
    assert torch.equal(ssm.diagonal("rand", 4096, generator=generator), rand)


def test_modifiers():
    plain = ssm.diagonal("inv", 16)
    scaled = ssm.diagonal("inv", 16, scale_real=3.0, scale_imag=0.1)
    assert torch.allclose(scaled.real, 3 * plain.real)
    assert torch.allclose(scaled.imag, 0.1 * plain.imag)
    assert ssm.diagonal("real", 2, scale_real=0.5).tolist() == [-0.5, -1]
    generator = torch.Generator().manual_seed(0)
    random = ssm.diagonal("lin", 8192, random_real=True, random_imag=True, scale_real=2.0, generator=generator)
    for values, high in ((-random.real, 2), (random.imag / math.pi, 4096)):
        assert 0 <= values.min() < 0.01 * high
        assert 0.99 * high < values.max() <= high
        assert abs(values.mean() / high - 0.5) < 0.02
    real = -ssm.diagonal("real", 8192, random_real=True, generator=generator)
    assert 0 < real.min() < 100 < 8000 < real.max() <= 8192


def test_groups_and_combinations():
    assert ssm.diagonal("inv", 8, 3).shape == (3, 4)
    assert torch.equal(ssm.diagonal("inv", 8, 3)[2], ssm.diagonal("inv", 8))
    hippo = ssm.diagonal("hippo", 8, 4)
    assert torch.equal(hippo[:2], ssm.diagonal("legs", 8, 2))
    assert torch.equal(hippo[2:], ssm.diagonal("fout", 8, 2))
    diag = ssm.diagonal("diag", 8, n_ssm=2, scale_imag=2.0)
    assert torch.equal(diag[0].imag, 2 * ssm.diagonal("inv", 8).imag)
    assert torch.equal(diag[1].imag, 2 * ssm.diagonal("lin", 8).imag)
    rand = ssm.diagonal("rand", 8, 2)
    assert not torch.equal(rand[0], rand[1])


def legs_integrals(t, count=4):
    """∫_0^t √(2n+1) e^-s P_n(2e^-s - 1) ds = √(2n+1) ∫_{e^-t}^1 P_n(2z - 1) dz."""
    z, rows = np.exp(-t), []
    for n in range(count):
        integral = np.polynomial.Legendre.basis(n, domain=[0, 1]).integ()
        rows.append(np.sqrt(2 * n + 1) * (integral(1) - integral(z)))
    return torch.from_numpy(np.stack(rows))


def diagonal_step_error(name, d_state):
    """Largest error of the step responses of the first four functions on t = 0, 0.02, …, 6."""
    t = torch.arange(301, dtype=torch.float64) * 0.02
    Lambda, _, b, V = ssm.nplr(name, d_state)
    response = 2 * ((V[:4] * b / 2) @ (torch.expm1(Lambda[:, None] * t) / Lambda[:, None])).real
    return (response - legs_integrals(t.numpy())).abs().max().item()


def diagonal_kernel_error(d_state, method):
    """Relative L2 error of the discretised kernels, dt = 0.02, t < 3, against the kernel's integral over each step."""
    steps, dt = torch.arange(150, dtype=torch.float64), 0.02
    Lambda, _, b, V = ssm.nplr("legs", d_state)
    exponent, scale = (
        torch.view_as_complex(part) for part in ssm.discretize_diagonal(torch.view_as_real(dt * Lambda), method)
    )
    kernel = 2 * ((V[:4] * scale * dt * b / 2) @ torch.exp(exponent[:, None] * steps)).real
    expected = legs_integrals((dt * (steps + 1)).numpy()) - legs_integrals((dt * steps).numpy())
    return ((kernel - expected).norm() / expected.norm()).item()


def test_the_diagonal_theorem():
    sizes = (16, 64, 256, 1024)
    table = {
        "step": ([0.0461, 0.00844, 0.00157, 0.00019], lambda size: diagonal_step_error("legs", size)),
        "bilinear": ([1.28, 0.393, 0.0014, 0.0014], lambda size: diagonal_kernel_error(size, "bilinear")),
        "zoh": ([1.23, 0.276, 0.058, 0.0061], lambda size: diagonal_kernel_error(size, "zoh")),
    }
    for published, measure in table.values():
        for size, value in zip(sizes, published, strict=True):
            # 4 %: half a unit of the last of two digits.
            assert measure(size) == pytest.approx(value, rel=0.04)


def test_the_diagonal_kernels_never_converge_pointwise():
    t = torch.linspace(0.02, 3, 4001).double()
    z = np.exp(-t.numpy())
    for d_state in (64, 256, 1024):
        Lambda, _, b, V = ssm.nplr("legs", d_state)
        kernel = 2 * ((V[:1] * b / 2) @ torch.exp(Lambda[:, None] * t)).real[0]
        assert (kernel - torch.from_numpy(z)).abs().max() > 0.5


def test_fout_is_not_recovered_without_its_low_rank():
    # Its step response is that of a window: it ends at 2. The waves of the normal part go on.
    t = torch.linspace(0, 6, 301).double()
    for d_state in (17, 65, 257):
        Lambda, _, b, V = ssm.nplr("fout", d_state)
        flow = torch.expm1(Lambda[:, None] * t) / Lambda[:, None]
        flow[0] = t.to(V)  # frequency 0
        for factor in (0.5, 1.0):
            response = 2 * (V[:1] * b * factor @ flow).real[0]
            assert (response - (t / 2).clamp(max=1)).abs().max() > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.diagonal("lim", 4), "did you mean 'lin'"),
        (lambda: ssm.diagonal("lin", 5), "even d_state"),
        (lambda: ssm.diagonal("real", 0), "d_state must be at least 1; got 0"),
        (lambda: ssm.diagonal("inv", 4, 0), "n_ssm must be at least 1; got n_ssm=0"),
        (lambda: ssm.diagonal("hippo", 4), r"multiple of 2 for init='hippo' \(legs, fout\); got n_ssm=1"),
        (lambda: ssm.diagonal("diag", 4, 3), "got n_ssm=3"),
        (lambda: ssm.diagonal("inv", 4, scale_real=0.0), "scale_real must be above 0.*got 0.0"),
        (lambda: ssm.diagonal("legs", 4, random_imag=True), "contains n: .*got init='legs'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
