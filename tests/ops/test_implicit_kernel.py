"""implicit_kernel against the formula in numpy, lag by lag, in float64."""

import sys

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from milkweed import ops

BACKENDS = ["eager", "reference"]


def draw(length, *, channels=7, width=6, inputs=5, dtype=torch.float64):
    features, frequency = torch.randn(length, inputs, dtype=dtype), 1 + torch.rand(width, dtype=dtype)
    shapes = ((width, inputs), (width,), (width, width), (width,), (width, width), (width,), (channels, width))
    return features, frequency, [torch.randn(*s, dtype=dtype) for s in shapes], torch.rand(channels, dtype=dtype) * 0.1


def literal(features, frequency, network, decay):
    z, f, d = (t.detach().double().numpy() for t in (features, frequency, decay))
    w0, b0, w1, b1, w2, b2, w3 = (t.detach().double().numpy() for t in network)
    kernel = np.empty((len(d), len(z)))
    for n in range(len(z)):
        x = np.sin(f * (w0 @ z[n] + b0))
        x = np.sin(f * (w1 @ x + b1))
        x = np.sin(f * (w2 @ x + b2))
        kernel[:, n] = (w3 @ x) * np.exp(-d * n)
    return torch.from_numpy(kernel)


def gradients(arguments, cotangent, **kwargs):
    features, frequency, network, decay = arguments
    leaves = [t.detach().clone().requires_grad_() for t in (features, frequency, *network, decay)]
    kernel = ops.implicit_kernel(leaves[0], leaves[1], leaves[2:-1], leaves[-1], **kwargs)
    return torch.autograd.grad(kernel, leaves, cotangent)


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of 16 lags, so that short kernels have several, the last one cut."""
    eager = sys.modules["milkweed.ops.implicit_kernel.eager"]  # the package's name is the function's as well
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(eager, "_LEAST_LAGS", 16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 63, 1000, 997])
def test_values(length, backend):
    arguments = draw(length)
    found = ops.implicit_kernel(*arguments, backend=backend)
    torch.testing.assert_close(found, literal(*arguments), rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("length", [1, 16, 63, 100])
def test_values_and_gradients_over_blocks(length):
    arguments, cotangent = draw(length), torch.randn(7, length, dtype=torch.float64)
    torch.testing.assert_close(ops.implicit_kernel(*arguments), literal(*arguments), rtol=1e-11, atol=1e-11)
    expected = gradients(arguments, cotangent, backend="reference")
    torch.testing.assert_close(gradients(arguments, cotangent), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    features, frequency, network, decay = draw(19, channels=2, width=3, inputs=3)
    leaves = [t.requires_grad_() for t in (features, frequency, *network, decay)]

    def function(*leaves):
        return ops.implicit_kernel(leaves[0], leaves[1], leaves[2:-1], leaves[-1], backend=backend)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, atol=1e-4)


def test_float32():
    features, frequency, network, decay = draw(4096, channels=16, width=128, dtype=torch.float32)
    # Of the size that layers start from.
    network = [t / t.shape[-1] ** 0.5 for t in network]
    arguments = (features, frequency, network, decay / 100)
    exact = literal(*arguments)
    assert (ops.implicit_kernel(*arguments).double() - exact).abs().max() < 1e-5 * exact.abs().max()
    wide = (features.double(), frequency.double(), [t.double() for t in network], arguments[3].double())
    cotangent = torch.randn(16, 4096)
    expected = gradients(wide, cotangent.double(), backend="reference")
    for found, truth in zip(gradients(arguments, cotangent), expected, strict=True):
        assert (found.double() - truth).norm() < 1e-5 * truth.norm()


def test_half_precision_is_computed_in_float32():
    features, frequency, network, decay = draw(50, dtype=torch.bfloat16)
    found = ops.implicit_kernel(features, frequency, network, decay)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), literal(features, frequency, network, decay), rtol=1e-4, atol=1e-4)
    grads = gradients((features, frequency, network, decay), torch.randn(7, 50))
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    arguments = draw(50, dtype=torch.float32)
    expected = ops.implicit_kernel(*arguments, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.implicit_kernel(*arguments, backend=backend), expected)


def test_strided_features():
    _, frequency, network, decay = draw(40)
    strided = torch.randn(5, 80, dtype=torch.float64)[:, ::2].T
    network = [torch.stack([t, t], -1)[..., 0] for t in network]
    found = ops.implicit_kernel(strided, frequency, network, decay)
    torch.testing.assert_close(found, literal(strided, frequency, network, decay), rtol=1e-11, atol=1e-11)


def test_opcheck_and_compile():
    features, frequency, network, decay = draw(33)
    leaves = [t.requires_grad_() for t in (features, frequency, *network, decay)]
    torch.library.opcheck(torch.ops.milkweed.implicit_kernel.default, tuple(leaves))

    def function(features, frequency, network, decay):
        return ops.implicit_kernel(features, frequency, network, decay).sin()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    cotangent = torch.randn(7, 33, dtype=torch.float64)
    expected = torch.autograd.grad(function(features, frequency, network, decay), leaves, cotangent)
    found = torch.autograd.grad(compiled(features, frequency, network, decay), leaves, cotangent)
    torch.testing.assert_close(found, expected)
    other = draw(50)
    torch.testing.assert_close(compiled(*other), function(*other))


def test_func_transforms_take_the_plain_formula():
    features, frequency, network, decay = draw(9)
    found = torch.func.jacrev(lambda f: ops.implicit_kernel(features, f, network, decay))(frequency)
    assert found.shape == (7, 9, 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda z, f, n, d: (z[0], f, n, d), ValueError, "features must be"),
        (lambda z, f, n, d: (z[:0], f, n, d), ValueError, "features must be"),
        (lambda z, f, n, d: (z, f[None], n, d), ValueError, "must be vectors"),
        (lambda z, f, n, d: (z, f, n[:-1], d), ValueError, "network must be 7 tensors"),
        (lambda z, f, n, d: (z, f[:-1], n, d), ValueError, r"weight 0 must be \(5, 5\)"),
        (lambda z, f, n, d: (z, f, n, d[:-1]), ValueError, r"weight 3 must be \(6, 6\)"),
        (lambda z, f, n, d: (z.long(), f, n, d), TypeError, "features must be real"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        ops.implicit_kernel(*change(*draw(9)))
