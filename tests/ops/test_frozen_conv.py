"""Convolution with frozen kernels against sums over lags in float64."""

import math
import re

import numpy as np
import pytest
import torch
from tests.ops.test_fft_conv import convolve, draw, expected

from milkweed import ops

BACKENDS = ["triton", "eager", "reference"]


def filtered(u, kernel, reverse, points, kept):
    """Every lag around the circle of a kernel without its high frequencies, summed with numpy in float64."""
    circle = np.zeros((kernel.shape[0], points))
    circle[:, : kernel.shape[1]] = kernel.double().numpy()
    circle[:, points - reverse.shape[1] :] += reverse.double().numpy()[:, ::-1]
    wave = np.exp(2j * math.pi * np.outer(np.arange(points), np.arange(points)) / points)
    spectrum = circle @ wave.conj()
    frequency = np.minimum(np.arange(points), points - np.arange(points))
    smooth = torch.from_numpy(((spectrum * (frequency < kept)) @ wave / points).real.copy())
    length = u.shape[-1]
    return convolve(u, smooth[:, :length], smooth[:, points - length :].flip(-1))


@pytest.mark.sampled
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 63, 200, 331])
def test_equals_the_kernel_it_was_made_of(length, backend):
    dtype = torch.float32 if backend == "triton" else torch.float64
    tolerance = 1e-5 if backend == "triton" else 1e-11
    u, kernel, extras = draw(length, dtype=dtype)
    frozen = ops.FrozenKernel(kernel, extras["reverse_kernel"], length=length)
    rest = {name: t for name, t in extras.items() if name != "reverse_kernel"}
    y = ops.fft_conv(u, frozen, **rest, backend=backend)
    scale = expected(u, kernel, extras).abs().max()
    torch.testing.assert_close(y.double() / scale, expected(u, kernel, extras) / scale, rtol=tolerance, atol=tolerance)
    shorter = u[..., : length // 2 + 1]  # the same spectrum serves every shorter signal
    torch.testing.assert_close(
        ops.fft_conv(shorter, frozen, backend=backend).double(),
        convolve(shorter, kernel[:, : length // 2 + 1], extras["reverse_kernel"]),
        rtol=tolerance,
        atol=tolerance * float(scale),
    )


@pytest.mark.sampled
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bandwidth", [1.0, 0.6, 0.25, 0.01, 1e-9])
def test_frequencies_that_are_left_out(bandwidth, backend):
    dtype = torch.float32 if backend == "triton" else torch.float64
    u, kernel = torch.randn(2, 2, 240, dtype=dtype), torch.randn(2, 240, dtype=dtype)
    reverse = torch.randn(2, 100, dtype=dtype)
    frozen = ops.FrozenKernel(kernel, reverse, length=240, bandwidth=bandwidth)
    kept = frozen.spectrum.shape[1]
    assert kept == max(1, round(bandwidth * 257))
    exact = filtered(u, kernel, reverse, 512, kept)
    y = ops.fft_conv(u, frozen, backend=backend)
    assert (y.double() - exact).norm() / exact.norm() < (1e-6 if backend == "triton" else 1e-12)


@pytest.mark.parametrize("points", [2048, 16384])
@pytest.mark.parametrize("bandwidth", [0.4, 0.1])
def test_the_triton_backend_skips_them(points, bandwidth, monkeypatch):
    pytest.importorskip("triton")
    from milkweed.ops.fft_conv import _triton_plan as plans
    from milkweed.ops.fft_conv import triton

    monkeypatch.setattr(plans, "_LARGEST", dict.fromkeys(plans._LARGEST, 2048))  # the other one goes through memory
    length = points // 2
    u, kernel = torch.randn(2, 1, length), torch.randn(1, length)
    frozen = ops.FrozenKernel(kernel, length=length, bandwidth=bandwidth)
    run = triton._Run.with_spectrum(u, points, frozen.spectrum.shape[1], *frozen.reach)
    if bandwidth < 0.2:
        assert len(run.columns) < run.plan.tile.factors[2]
    y = ops.fft_conv(u, frozen, backend="triton")
    wide = torch.fft.rfft(u.double(), points)[..., : frozen.spectrum.shape[1]]
    exact = torch.fft.irfft(wide * torch.fft.rfft(kernel.double(), points)[:, : wide.shape[-1]], points)[..., :length]
    assert (y.double() - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["triton", "eager"])
def test_half_precision(dtype, backend):
    u, kernel = torch.randn(2, 2, 300).to(dtype), torch.randn(2, 300)
    frozen = ops.FrozenKernel(kernel, length=300)
    y = ops.fft_conv(u, frozen, backend=backend)
    exact = convolve(u, kernel)
    assert y.dtype == dtype
    assert (y.double() - exact).norm() / exact.norm() < (5e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_everything_but_the_kernel(backend):
    dtype = torch.float32 if backend == "triton" else torch.float64
    u, kernel, extras = draw(37, dtype=dtype)
    kernel.requires_grad_()
    frozen = ops.FrozenKernel(kernel, extras.pop("reverse_kernel"), length=37, bandwidth=0.5)
    tensors = [t.requires_grad_() for t in (u, *extras.values())]
    y = ops.fft_conv(u, frozen, **extras, backend=backend)
    found = torch.autograd.grad(y.sin().sum(), tensors, create_graph=backend != "triton")
    wide = [t.detach().double().requires_grad_() for t in tensors]
    frozen.spectrum = frozen.spectrum.double()
    exact = ops.fft_conv(wide[0], frozen, **dict(zip(extras, wide[1:], strict=True)), backend="reference")
    for a, b in zip(found, torch.autograd.grad(exact.sin().sum(), wide), strict=True):
        assert (a.double() - b).norm() / b.norm() < (1e-4 if backend == "triton" else 1e-10)
    assert kernel.grad is None


def test_a_change_of_the_kernel_does_not_reach_it():
    u, kernel = torch.randn(1, 2, 30), torch.randn(2, 30)
    frozen = ops.FrozenKernel(kernel, length=30)
    before = ops.fft_conv(u, frozen)
    kernel.zero_()
    torch.testing.assert_close(ops.fft_conv(u, frozen), before)


def test_the_arrangement_is_made_once(monkeypatch):
    pytest.importorskip("triton")
    from milkweed.ops.fft_conv import triton

    made = []
    arrange = triton._Run.arrange
    monkeypatch.setattr(triton._Run, "arrange", lambda *args: (made.append(1), arrange(*args))[1])
    u, frozen = torch.randn(1, 2, 30), ops.FrozenKernel(torch.randn(2, 30), length=30)
    for _ in range(3):
        ops.fft_conv(u, frozen, backend="triton")
    assert len(made) == 1


@pytest.mark.parametrize("backend", ["triton", "eager"])
def test_compiles(backend):
    frozen = ops.FrozenKernel(torch.randn(2, 30), length=30)
    u = torch.randn(1, 2, 30, requires_grad=True)
    compiled = torch.compile(lambda u: ops.fft_conv(u, frozen, backend=backend), fullgraph=True, backend="aot_eager")
    y = compiled(u)
    torch.testing.assert_close(y, ops.fft_conv(u, frozen, backend="eager"), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert u.grad.isfinite().all()


def test_any_leading_shape_and_empty_batches():
    frozen = ops.FrozenKernel(torch.randn(3, 20), length=20)
    assert ops.fft_conv(torch.randn(3, 20), frozen).shape == (3, 20)
    assert ops.fft_conv(torch.randn(0, 3, 20), frozen).shape == (0, 3, 20)
    assert ops.explain("frozen_conv", torch.randn(1, 3, 20), frozen).backend == "eager"
    assert "20" in repr(frozen)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: ops.FrozenKernel(k.long(), length=9), TypeError, "kernel must be real floating point"),
        (lambda k: ops.FrozenKernel(k[0], length=9), ValueError, "kernel must be (H, lags)"),
        (lambda k: ops.FrozenKernel(k, k[:1], length=9), ValueError, "reverse_kernel must be (H, lags) with H = 2"),
        (lambda k: ops.FrozenKernel(k, length=7), ValueError, "length must be an integer of at least the 8 lags"),
        (lambda k: ops.FrozenKernel(k, length=9.0), ValueError, "length must be an integer"),
        (lambda k: ops.FrozenKernel(k, length=9, bandwidth=0), ValueError, "bandwidth must be in 0 < bandwidth <= 1"),
        (lambda k: ops.fft_conv(torch.randn(1, 2, 10), ops.FrozenKernel(k, length=9)), ValueError, "9 steps at most"),
        (lambda k: ops.fft_conv(torch.randn(1, 3, 9), ops.FrozenKernel(k, length=9)), ValueError, "2 channels"),
        (
            lambda k: ops.fft_conv(torch.randn(1, 2, 9), ops.FrozenKernel(k, length=9), reverse_kernel=k),
            ValueError,
            "reverse_kernel is part of a FrozenKernel",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(torch.randn(2, 8))
