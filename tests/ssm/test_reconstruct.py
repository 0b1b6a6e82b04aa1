"""Signals through a basis and back."""

import numpy as np
import pytest
import torch

from milkweed import ssm


def smooth(t):
    """A band-limited signal."""
    return torch.sin(2 * t) + 0.5 * torch.cos(5 * t + 1) + 0.3 * torch.sin(0.7 * t)


def run(name, d_state, steps=3000, dt=0.002, **options):
    """The class, its last coefficients, and the sampled signal."""
    memory = ssm.Reconstruction(name, d_state, dt=dt, **options)
    u = smooth((torch.arange(steps, dtype=torch.float64) + 0.5) * dt)
    return memory, memory.final(u), u


def lags(memory, seconds):
    """Middles of the steps of the last so many seconds, and which samples they were, newest first."""
    index = torch.arange(round(seconds / memory.dt))
    return (index + 0.5) * memory.dt, -1 - index


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("name", ["legt", "lmu"])
def test_a_window_of_polynomials(name, method):
    memory, x, u = run(name, 24, dt=0.002 if name == "legt" else 0.001, method=method)
    ago, samples = lags(memory, ssm.BASES[name].window)
    assert (memory.past(x, ago) - u[samples]).abs().max() < 1e-3


def test_a_window_of_waves():
    memory, x, u = run("fout", 129)
    ago, samples = lags(memory, 2)
    error = (memory.past(x, ago) - u[samples]).abs()
    # The series of a signal that differs at both ends of the window rings there.
    assert error[100:-100].max() < 0.05
    assert error.square().mean().sqrt() < 0.1 * u[samples].square().mean().sqrt()
    # The mean of both ends is what the series takes there, and how the delay is read.
    assert 2 * memory.past(x, torch.zeros(1)) - u[-1] == pytest.approx(u[-1001].item(), abs=0.05)


def test_more_waves_are_better():
    errors = []
    for d_state in (17, 65, 257):
        memory, x, u = run("fout", d_state)
        ago, samples = lags(memory, 2)
        errors.append((memory.past(x, ago) - u[samples])[150:-150].abs().max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_legs_forgets_exponentially():
    memory, x, u = run("legs", 32)
    ago, samples = lags(memory, 6)
    error = (memory.past(x, ago) - u[samples]).abs()
    # Optimal under e^-t: the weighted error is small though the far past is lost.
    assert error[:500].max() < 0.03
    assert (error.square() * torch.exp(-ago)).sum() * memory.dt < 5e-3
    assert error[2500:].max() > 0.3


def test_scaled_legs_remembers_the_whole_past_evenly():
    memory, x, u = run("legs", 40, steps=4000, dt=0.002, scaled=True)
    ago, samples = lags(memory, 8)
    assert (memory.past(x, ago, elapsed=8.0) - u[samples]).abs().max() < 2e-3


@pytest.mark.parametrize("length", [1, 2, 50])
def test_scaled_coefficients_are_projections(length):
    # x_n = ∫_0^1 u √(2n+1) P_n(2z - 1) dz over the whole past, for an input constant over each step.
    u = torch.randn(2, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges, expected = np.arange(length + 1) / length, []
    for n in range(12):
        integral = np.polynomial.Legendre.basis(n, domain=[0, 1]).integ()
        expected.append(np.sqrt(2 * n + 1) * (u.numpy() @ np.diff(integral(edges))))
    got = ssm.Reconstruction("legs", 12, scaled=True).final(u)
    assert np.abs(got.numpy() - np.stack(expected, -1)).max() < 1e-11


def test_legs_coefficients_are_projections():
    # The same with ω = e^-t: in z = e^-t, the step k before the last is [e^-(k+1)dt, e^-k dt].
    u = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges = np.exp(-0.05 * np.arange(301))
    expected = []
    for n in range(12):
        integral = np.polynomial.Legendre.basis(n, domain=[0, 1]).integ()
        expected.append(np.sqrt(2 * n + 1) * (-np.diff(integral(edges)) @ u.flip(0).numpy()))
    got = ssm.Reconstruction("legs", 12, dt=0.05).final(u)
    assert np.abs(got.numpy() - np.array(expected)).max() < 1e-11


@pytest.mark.parametrize("scaled", [False, True])
def test_coefficients_arrive_with_the_samples(scaled):
    memory = ssm.Reconstruction("legs", 8, scaled=scaled)
    u = torch.randn(2, 3, 40)
    every = memory.coefficients(u)
    assert every.shape == (2, 3, 40, 8)
    assert every.dtype == torch.float64
    assert torch.equal(every[..., -1, :], memory.final(u))
    assert torch.allclose(every[..., 9, :], memory.final(u[..., :10]))
    assert memory.past(every, torch.tensor([0.1, 0.2]), 0.4 if scaled else None).shape == (2, 3, 40, 2)


def test_scaled_methods_agree():
    zoh, bilinear = (run("legs", 16, steps=1000, scaled=True, method=method)[1] for method in ("zoh", "bilinear"))
    assert 0 < (zoh - bilinear).abs().max() < 0.01


def test_laguerre_recalls_a_passing_bump():
    memory = ssm.Reconstruction("lagt", 64, dt=0.01)
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) * 0.01
    u = torch.exp(-(t - 37).square())
    x = memory.final(u)
    ago, samples = lags(memory, 6)
    assert (memory.past(x, ago) - u[samples]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.Reconstruction("legd", 4), "did you mean 'legsd'"),
        (lambda: ssm.Reconstruction("legt", 4, scaled=True), "scaled=True is for name='legs'.*got name='legt'"),
        (lambda: ssm.Reconstruction("legs", 4, dt=-1.0), "dt must be above 0 and finite; got -1.0"),
        (lambda: ssm.Reconstruction("legs", 4, method="zho"), "did you mean 'zoh'"),
        (lambda: ssm.Reconstruction("legs", 4).final(torch.zeros(2, 0)), r"at least one sample; got shape \(2, 0\)"),
        (lambda: ssm.Reconstruction("legs", 4).past(torch.zeros(3), torch.zeros(1)), r"N=4; got shape \(3,\)"),
        (
            lambda: ssm.Reconstruction("legt", 4).past(torch.zeros(4), torch.tensor([2.5])),
            "ago must lie in 0 .. 2; got 2.5 .. 2.5",
        ),
        (
            lambda: ssm.Reconstruction("legs", 4, scaled=True).past(torch.zeros(4), torch.zeros(1)),
            "scaled=True needs elapsed",
        ),
        (
            lambda: ssm.Reconstruction("legs", 4).past(torch.zeros(4), torch.zeros(1), 1.0),
            "scaled=False takes no elapsed; got elapsed=1.0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
