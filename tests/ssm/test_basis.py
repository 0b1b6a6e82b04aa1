"""Kernels against closed forms written here, functions orthonormal by quadrature, weak limits."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch

from milkweed import ssm


def legs_kernels(d_state, t):
    n = np.arange(d_state)[:, None]
    return np.sqrt(2 * n + 1) * np.exp(-t) * np.polynomial.legendre.legvander(2 * np.exp(-t) - 1, d_state - 1).T


@pytest.mark.parametrize(
    "times", [torch.linspace(0, 6, 301).double(), torch.tensor([0.0, 0.3, 1.0, 4.0]), torch.tensor([0.7])]
)
def test_legs_kernels(times):
    kernels = ssm.basis(*ssm.hippo("legs", 64), times)
    assert np.abs(kernels.numpy() - legs_kernels(64, times.double().numpy())).max() < 1e-12


def test_even_and_uneven_times_agree_with_expm():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    B = torch.randn(5, generator=generator, dtype=torch.float64)
    for times in (torch.linspace(-0.5, 2, 26).double(), torch.rand(7, generator=generator).double()):
        expected = np.stack([scipy.linalg.expm(t * A.numpy()) @ B.numpy() for t in times.numpy()], 1)
        assert np.abs(ssm.basis(A, B, times).numpy() - expected).max() < 1e-12
    assert ssm.basis(A, B, torch.zeros(0)).shape == (5, 0)


def test_legs_kernels_are_orthonormal():
    # z = e^-t: the integral of K_n K_m e^t over time is that of (K_n/z)(K_m/z) over z in [0, 1].
    x, weights = np.polynomial.legendre.leggauss(40)
    z = (x + 1) / 2
    times = torch.from_numpy(-np.log(z))
    kernels = ssm.basis(*ssm.hippo("legs", 32), times).numpy() / z
    assert np.abs(kernels * weights / 2 @ kernels.T - np.eye(32)).max() < 1e-12
    functions = ssm.basis_functions("legs", 32, times).numpy()
    assert np.abs(functions * weights / 2 @ functions.T - np.eye(32)).max() < 1e-13


def rule(name, alpha=0.0, beta=1.0):
    """Times and weights that integrate products of the basis' functions under its measure."""
    x, weights = np.polynomial.legendre.leggauss(60)
    if name == "legs":
        return -np.log((x + 1) / 2), weights / 2
    if name == "legt":
        return x + 1, weights / 2
    if name == "lmu":
        return (x + 1) / 2, weights / 2
    if name == "fout":
        return np.arange(100) / 50, np.full(100, 0.01)
    if name == "fourier_decay":
        grid = np.arange(0, 80, 0.02)
        return grid, 0.02 * 3.0 ** -(np.floor((grid + 1e-9) / 2) + 1)
    if name == "chebt":
        # p_n² ω = [2 (1 - x²) p_n²] · (1 - x²)^-½/π with a polynomial in brackets: Gauss-Chebyshev.
        nodes = np.cos((np.arange(60) + 0.5) * np.pi / 60)
        return 1 - nodes, 2 * (1 - nodes**2) / 60
    if name == "lagt":
        nodes, weights = scipy.special.roots_laguerre(40)
        return nodes, weights * np.exp(nodes)
    nodes, weights = scipy.special.roots_genlaguerre(40, alpha)
    # p_n² ω = polynomial · t^α e^-t, with ω = t^-α e^-βt β^(1-α)/Γ(1-α).
    density = nodes**-alpha * np.exp(-beta * nodes) * beta ** (1 - alpha) / math.gamma(1 - alpha)
    return nodes, weights * density / (nodes**alpha * np.exp(-nodes))


@pytest.mark.parametrize("name", ["legs", "legt", "fout", "fourier_decay", "chebt", "lagt", "glagt", "lmu"])
def test_functions_are_orthonormal(name):
    options = {"alpha": 0.3, "beta": 0.5} if name == "glagt" else {}
    times, weights = rule(name, **options)
    functions = ssm.basis_functions(name, 9, torch.from_numpy(times), **options).numpy()
    norms = 1 / (2 * np.arange(9) + 1) if name == "lmu" else np.ones(9)
    assert np.abs(functions * weights @ functions.T - np.diag(norms)).max() < 1e-9


def test_foud_is_nearly_orthonormal():
    middle = torch.arange(0.5e-4, 60, 1e-4, dtype=torch.float64)
    functions = ssm.basis_functions("foud", 9, middle)
    gram = (functions * ssm.measure("foud", middle) * 1e-4) @ functions.T
    # The largest product is that of the constant with the slowest sine: ∫ ½ e^{-t/2} √2 sin(2πt) dt.
    expected = 2**0.5 * math.pi / (0.25 + 4 * math.pi**2)
    assert (gram - torch.eye(9)).abs().max() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["legs", "legt", "lmu", "fout", "fourier_decay", "foud", "glagt", "chebt"])
def test_measures_integrate_to_one(name):
    middle = torch.arange(0.5e-4, 60, 1e-4, dtype=torch.float64)
    assert ssm.measure(name, middle).sum() * 1e-4 == pytest.approx(1, abs=1e-5)
    assert (ssm.measure(name, torch.tensor([-1.0])) == 0).all()


def test_measure_of_glagt():
    middle = torch.arange(0.5e-4, 60, 1e-4, dtype=torch.float64)
    assert ssm.measure("glagt", middle, alpha=-0.5, beta=0.7).sum() * 1e-4 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["legs", "foud", "lagt", "glagt", "chebt"])
def test_kernels_are_functions_times_measure(name):
    options = {"alpha": 0.3, "beta": 0.5} if name == "glagt" else {}
    times = torch.linspace(0.01, 1.99, 100).double()
    kernels = ssm.basis(*ssm.hippo(name, 9, **options), times)
    expected = ssm.basis_functions(name, 9, times, **options) * ssm.measure(name, times, **options)
    assert (kernels - expected).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["legsd", "legt", "lmu", "fout", "fourier_decay"])
def test_kernels_are_weakly_functions_times_measure(name):
    # Their integrals from 0 converge; the first five functions, N = 17 and 129.
    window = min(ssm.BASES[name].window, 4.0)
    times = np.linspace(0.1, 1.5 * window, 12)
    fine = (torch.arange(60_000, dtype=torch.float64) + 0.5) * (times[-1] / 60_000)
    density = ssm.basis_functions(name, 5, fine) * ssm.measure(name, fine)
    norms = 2 * torch.arange(5) + 1 if name == "lmu" else torch.ones(5)
    expected = torch.cumsum(density, 1) * norms[:, None] * (times[-1] / 60_000)
    index = torch.from_numpy(np.round(times / times[-1] * 60_000).astype(int)) - 1
    errors = []
    for d_state in (17, 129):
        A, B = (value.numpy() for value in ssm.hippo(name, d_state))
        flows = [np.linalg.solve(A, (scipy.linalg.expm(t * A) - np.eye(d_state)) @ B)[:5] for t in times]
        errors.append(np.abs(np.stack(flows, 1) - expected[:, index].numpy()).max())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.basis(torch.zeros(2, 3), torch.zeros(2), torch.zeros(1)), r"A must be \(N, N\)"),
        (lambda: ssm.basis(torch.zeros(2, 2), torch.zeros(3), torch.zeros(1)), r"got shapes \(2, 2\) and \(3,\)"),
        (lambda: ssm.basis(torch.zeros(2, 2), torch.zeros(2), torch.zeros(1, 1)), r"times must be \(T,\)"),
        (lambda: ssm.basis_functions("foutt", 3, torch.zeros(1)), "did you mean 'fout'"),
        (lambda: ssm.basis_functions("fout", 4, torch.zeros(1)), "use 3 or 5"),
        (lambda: ssm.basis_functions("legs", 3, torch.zeros(1), beta=1.0), "belong to name='glagt'"),
        (lambda: ssm.measure("lgs", torch.zeros(1)), "did you mean 'legs'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
