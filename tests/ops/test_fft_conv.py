"""fft_conv against sums over lags in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from milkweed import ops

BACKENDS = ["eager", "reference"]
LENGTHS = [1, 2, 63, 128, 1000, 997]


def convolve(u, kernel, reverse=None):
    """The definition with numpy's direct convolution: (B, H, L) float64."""
    u, kernel = u.double().numpy(), kernel.double().numpy()
    batch, channels, length = u.shape
    y = np.zeros_like(u)
    for b in range(batch):
        for h in range(channels):
            y[b, h] = np.convolve(u[b, h], kernel[h])[:length]
            if reverse is not None:
                backward = np.convolve(u[b, h, ::-1], reverse[h].double().numpy())[:length]
                y[b, h, :-1] += backward[::-1][1:]
    return torch.from_numpy(y)


def draw(length, *, batch=2, channels=3, lags=None, dtype=torch.float64):
    u = torch.randn(batch, channels, length, dtype=dtype)
    extras = {
        "reverse_kernel": torch.randn(channels, max(1, length // 2), dtype=dtype),
        "skip": torch.randn(channels, dtype=dtype),
        "pre_gate": torch.randn_like(u),
        "post_gate": torch.randn_like(u),
    }
    return u, torch.randn(channels, lags or length, dtype=dtype), extras


def expected(u, kernel, extras):
    u, kernel = u.double(), kernel.double()
    extras = {name: t.double() for name, t in extras.items()}
    v = u * extras["pre_gate"]
    y = convolve(v, kernel, extras["reverse_kernel"]) + extras["skip"][:, None] * v
    return y * extras["post_gate"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_causal(length, backend):
    u, kernel, _ = draw(length)
    torch.testing.assert_close(ops.fft_conv(u, kernel, backend=backend), convolve(u, kernel), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_everything_at_once(length, backend):
    u, kernel, extras = draw(length, lags=max(1, length // 3))
    y = ops.fft_conv(u, kernel, **extras, backend=backend)
    torch.testing.assert_close(y, expected(u, kernel, extras), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 63, 1000])
def test_float32_error(length):
    u, kernel, extras = draw(length, dtype=torch.float32)
    exact = expected(u, kernel, extras)
    assert (ops.fft_conv(u, kernel, **extras).double() - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize("present", [(), ("reverse_kernel",), ("skip", "post_gate"), ("pre_gate",), None])
def test_gradients(present):
    u, kernel, extras = draw(37)
    extras = {name: t for name, t in extras.items() if present is None or name in present}
    tensors = [t.requires_grad_() for t in (u, kernel, *extras.values())]

    def run(backend):
        y = ops.fft_conv(tensors[0], tensors[1], **dict(zip(extras, tensors[2:], strict=True)), backend=backend)
        return torch.autograd.grad(y.sin().sum(), tensors)

    for a, b in zip(run("eager"), run("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives():
    u, kernel, extras = draw(5, batch=1, channels=2)
    tensors = tuple(t.requires_grad_() for t in (u, kernel, *extras.values()))

    def function(u, kernel, *rest):
        return ops.fft_conv(u, kernel, **dict(zip(extras, rest, strict=True)))

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


def test_reference_derivatives():
    u, kernel, extras = draw(4, batch=1, channels=2)
    tensors = tuple(t.requires_grad_() for t in (u, kernel, *extras.values()))
    assert gradcheck(
        lambda u, k, *rest: ops.fft_conv(u, k, **dict(zip(extras, rest, strict=True)), backend="reference"), tensors
    )


@pytest.mark.parametrize("bytes_per_block", [1, 4096, 10**9])
def test_blocks_change_nothing(bytes_per_block, monkeypatch):
    from milkweed.ops.fft_conv import _blocks

    monkeypatch.setattr(_blocks, "_BLOCK_BYTES", bytes_per_block)
    u, kernel, extras = draw(65, batch=5, channels=35)
    tensors = [t.requires_grad_() for t in (u, kernel, *extras.values())]
    y = ops.fft_conv(u, kernel, **extras)
    torch.testing.assert_close(
        y.detach(), expected(*(t.detach() for t in (u, kernel)), {n: t.detach() for n, t in extras.items()})
    )
    grads = torch.autograd.grad(y.sum(), tensors)
    reference = torch.autograd.grad(ops.fft_conv(u, kernel, **extras, backend="reference").sum(), tensors)
    for a, b in zip(grads, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_memory_order_follows_the_input():
    u, kernel, _ = draw(50)
    channels_last = u.transpose(1, 2).contiguous().transpose(1, 2)
    y = ops.fft_conv(channels_last, kernel)
    assert y.stride() == channels_last.stride()
    torch.testing.assert_close(y, convolve(u, kernel))
    strided = torch.randn(2, 3, 100, dtype=torch.float64)[..., ::2]
    torch.testing.assert_close(ops.fft_conv(strided, kernel), convolve(strided, kernel))
    expanded = torch.randn(1, 3, 50, dtype=torch.float64).expand(4, 3, 50)
    torch.testing.assert_close(ops.fft_conv(expanded, kernel), convolve(expanded, kernel))


@pytest.mark.parametrize("lead", [(), (2, 2), (0,)])
def test_any_leading_shape(lead):
    _, kernel, _ = draw(20)
    u = torch.randn(*lead, 3, 20, dtype=torch.float64, requires_grad=True)
    y = ops.fft_conv(u, kernel)
    flat = convolve(u.detach().reshape(-1, 3, 20), kernel)
    torch.testing.assert_close(y.detach(), flat.reshape(u.shape))
    y.sum().backward()
    assert u.grad.shape == u.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(dtype):
    u, kernel, extras = draw(256, dtype=torch.float32)
    half = u.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # transforms stay in float32
        y = ops.fft_conv(half, kernel, **extras)
    assert y.dtype == dtype
    exact = expected(half, kernel, extras)
    assert (y.double() - exact).norm() / exact.norm() < torch.finfo(dtype).eps


def test_compiles_with_changing_length():
    compiled = torch.compile(ops.fft_conv, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (33, 64, 100):
        u, kernel, extras = draw(length)
        u.requires_grad_(), kernel.requires_grad_()
        y = compiled(u, kernel, **extras)
        torch.testing.assert_close(y.detach(), expected(u.detach(), kernel.detach(), extras))
        a = torch.autograd.grad(y.sum(), (u, kernel))
        b = torch.autograd.grad(ops.fft_conv(u, kernel, **extras, backend="reference").sum(), (u, kernel))
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right)


def test_fft_length_is_the_shortest_smooth_one():
    from milkweed.ops.fft_conv._blocks import fft_length

    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for least in [*range(1, 400), 1567, 8191, 8192, 65537]:
        n = least
        while n % 2 or not smooth(n):
            n += 1
        assert fft_length(least) == n, least


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"u": torch.randn(8)}, ValueError, r"u must be \(..., H, L\)"),
        ({"u": torch.randn(2, 3, 0)}, ValueError, "H, L >= 1"),
        ({"u": torch.zeros(2, 3, 8, dtype=torch.long)}, TypeError, "u must be real floating point"),
        ({"kernel": torch.randn(3, 8, dtype=torch.complex64)}, TypeError, "kernel must be real"),
        ({"kernel": torch.randn(4, 8)}, ValueError, r"kernel must be \(H, lags\) with H = 3"),
        ({"kernel": torch.randn(3, 9)}, ValueError, r"kernel has 9 lags; .* crop it with kernel\[:, :8\]"),
        ({"reverse_kernel": torch.randn(3, 0)}, ValueError, "reverse_kernel has 0 lags"),
        ({"skip": torch.randn(2)}, ValueError, r"skip must be \(H,\) = \(3,\)"),
        ({"post_gate": torch.randn(2, 3, 1)}, ValueError, "post_gate must have u's shape"),
    ],
)
def test_bad_input(arguments, error, message):
    good = {"u": torch.randn(2, 3, 8), "kernel": torch.randn(3, 8)} | arguments
    with pytest.raises(error, match=message):
        ops.fft_conv(good.pop("u"), good.pop("kernel"), **good)
