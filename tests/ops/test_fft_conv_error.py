"""The error of fft_conv: 4 eps · ‖u‖ · ‖k‖ over the whole sequence, and float64 where that is not enough."""

import numpy as np
import pytest
import torch
from tests.ops.test_fft_conv import convolve, draw

from milkweed import nn, ops

BOUND = 4 * torch.finfo(torch.float32).eps


def spiky(length):
    """Small numbers with one large one late in the sequence."""
    u = 1e-3 * torch.randn(2, 3, length)
    u[..., length // 2] = 1e6
    return u


SIGNALS = {
    "random": lambda length: torch.randn(2, 3, length),
    "constant": lambda length: torch.ones(2, 3, length),
    "spiky": spiky,
    "growing": lambda length: torch.logspace(-15, 15, length).expand(2, 3, length).clone(),
    "alternating": lambda length: (-1.0) ** torch.arange(length).expand(2, 3, length),
    "one step": lambda length: (
        torch.nn.functional.one_hot(torch.tensor(length // 3), length).expand(2, 3, length) * 1.0
    ),
}
KERNELS = {
    "random": lambda length: torch.randn(3, length),
    "decaying": lambda length: torch.exp(-torch.arange(length) / 5.0).expand(3, length).clone(),
    "constant": lambda length: torch.ones(3, length),
    "one large lag": lambda length: (
        torch.nn.functional.one_hot(torch.tensor(length - 1), length).expand(3, length) * 1e6
    ),
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_documented_bound(signal, kernel):
    for length in (10, 100, 4096):
        u, k = SIGNALS[signal](length), KERNELS[kernel](length)
        bound = BOUND * (u.double().norm(dim=-1) * k.double().norm(dim=-1))[..., None]
        assert ((ops.fft_conv(u, k).double() - convolve(u, k)).abs() <= bound).all()
        u.requires_grad_(), k.requires_grad_()
        g = torch.randn(2, 3, length)
        by_u, by_k = torch.autograd.grad(ops.fft_conv(u, k), (u, k), g)
        wide = [t.detach().double().requires_grad_() for t in (u, k)]
        true_u, true_k = torch.autograd.grad(ops.fft_conv(*wide), wide, g.double())
        norms = [t.detach().double().norm(dim=-1)[..., None] for t in (g, u, k)]
        assert ((by_u.double() - true_u).abs() <= BOUND * norms[0] * norms[2]).all()
        assert ((by_k.double() - true_k).abs() <= BOUND * (norms[0] * norms[1]).sum(0)).all()


def test_a_spike_is_beyond_a_float32_transform_and_not_beyond_float64():
    u, k = spiky(1000), KERNELS["decaying"](1000)
    exact = convolve(u, k)
    past = exact[..., :500]
    assert (ops.fft_conv(u, k)[..., :500].double() - past).abs().max() > past.abs().max()
    precise = ops.fft_conv(u, k, backend="float64"), ops.fft_conv(u, ops.FrozenKernel(k.double(), length=1000))
    for y in precise:
        assert y.dtype == torch.float32
        assert ((y[..., :500].double() - past).abs() <= 1e-6 * past.abs().max()).all()
        torch.testing.assert_close(y[..., 500:].double(), exact[..., 500:], rtol=1e-6, atol=1e-8)
    # A kernel that was frozen in float32 keeps the past; what is left of its digits decides about the rest.
    y = ops.fft_conv(u, ops.FrozenKernel(k, length=1000), backend="float64")
    assert ((y[..., :500].double() - past).abs() <= 1e-6 * past.abs().max()).all()
    assert ((y.double() - exact).abs() <= BOUND * u.double().norm() * k.double().norm()).all()


@pytest.mark.parametrize("place", ["u", "grad"])
def test_gradients_of_a_spike_in_float64(place):
    u, k, extras = draw(200, dtype=torch.float32)
    grad = torch.randn_like(u)
    {"u": u, "grad": grad}[place][..., 100] = 1e6
    tensors = {"u": u, "kernel": k} | extras
    inputs = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    wide = {name: t.double().requires_grad_() for name, t in tensors.items()}
    found = torch.autograd.grad(ops.fft_conv(**inputs, backend="float64"), list(inputs.values()), grad)
    exact = torch.autograd.grad(ops.fft_conv(**wide, backend="reference"), list(wide.values()), grad.double())
    for f, e in zip(found, exact, strict=True):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.S4D(4, 8, output="none", activation="none"),
        lambda: nn.S4(4, 8, output="none", activation="none"),
        lambda: nn.LongConv(4, 300),
        lambda: nn.CausalMonarchMixer(4, 300),
    ],
)
def test_layers_reach_it_by_the_context(build):
    torch.manual_seed(0)
    layer = build()
    u = 1e-3 * torch.randn(1, 300, 4)
    spike = u.clone()
    spike[:, 150] = 1e6
    with torch.no_grad(), ops.use_backend("float64"):
        clean, found = layer(u)[:, :150], layer(spike)[:, :150]
    assert (clean - found).abs().max() <= 1e-6 * clean.abs().max()
    with torch.no_grad():
        assert (layer(u)[:, :150] - layer(spike)[:, :150]).abs().max() > 1e-3 * clean.abs().max()


def test_float64_has_nothing_to_add_to_float64():
    u, k, _ = draw(100)
    assert np.array_equal(ops.fft_conv(u, k).numpy(), ops.fft_conv(u, k, backend="float64").numpy())
