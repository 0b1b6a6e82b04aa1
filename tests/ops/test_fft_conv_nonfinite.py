"""fft_conv with infinities and NaN: they reach what depends on them, and nothing else changes."""

import itertools

import pytest
import torch
from tests.ops.test_fft_conv import convolve, draw, expected

from milkweed import ops
from milkweed.ops.fft_conv import _blocks, _nonfinite

# The definition in numpy meets them too.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

BACKENDS = ["eager", "reference", "float64"]
VALUES = [float("nan"), float("inf"), float("-inf")]


def assert_same_pattern(found, exact, scale=None):
    assert torch.equal(found.isfinite(), exact.isfinite())
    kept = exact.isfinite()
    size = exact[kept].abs().max() if scale is None else scale
    torch.testing.assert_close(found[kept].double() / size, exact[kept].double() / size, rtol=0, atol=2e-6)


@pytest.fixture(params=["one block", "small blocks", "a device that is not asked"])
def way(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setattr(_blocks, "_BLOCK_BYTES", 1)
        monkeypatch.setattr(_blocks, "_LEAST_CHANNELS", 2)
    elif request.param != "one block":
        monkeypatch.setattr(_nonfinite, "looks_finite", lambda result: False)
        plan = _blocks.Plan.__init__

        def unasked(self, *args):
            plan(self, *args)
            self.asks = False

        monkeypatch.setattr(_blocks.Plan, "__init__", unasked)


@pytest.mark.sampled
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("lags", [1, 7, 40])
def test_causal(lags, value, backend, way):
    u, kernel, _ = draw(40, batch=3, channels=5, lags=lags, dtype=torch.float32)
    for t in (0, 17, 39):
        broken = u.clone()
        broken[1, 2, t] = value
        y = ops.fft_conv(broken, kernel, backend=backend)
        clean = convolve(u, kernel)
        reached = torch.zeros_like(u, dtype=torch.bool)
        reached[1, 2, t : t + lags] = True
        assert torch.equal(~y.isfinite(), reached)
        torch.testing.assert_close(y[~reached].double(), clean[~reached], rtol=0, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ["u", "kernel", "reverse_kernel", "skip", "pre_gate", "post_gate", "all"])
def test_everything_at_once(place, backend, way):
    for value, lags, t in itertools.product(VALUES, (3, 30), (0, 2, 14)):
        u, kernel, extras = draw(30, batch=2, channels=3, lags=lags, dtype=torch.float32)
        given = {"u": u, "kernel": kernel} | extras
        for name in given if place == "all" else [place]:
            broken = given[name].select(0, 1)
            broken.view(-1)[(t * broken.numel()) // 30] = value
        y = ops.fft_conv(**given, backend=backend)
        scale = ops.fft_conv(**{name: torch.nan_to_num(x, 0, 0, 0) for name, x in given.items()}).abs().max()
        assert_same_pattern(y, expected(u, kernel, extras), scale)


@pytest.mark.sampled
@pytest.mark.parametrize("place", ["grad", "u", "kernel", "reverse_kernel", "skip", "pre_gate", "post_gate"])
def test_gradients(place, way):
    for value, lags, t in itertools.product(VALUES, (3, 20), (0, 2, 9, 19)):
        u, kernel, extras = draw(20, batch=2, channels=3, lags=lags, dtype=torch.float64)
        given = {"grad": torch.randn_like(u), "u": u, "kernel": kernel} | extras
        broken = given[place].select(0, 1)
        broken.view(-1)[(t * broken.numel()) // 20] = value
        grad = given.pop("grad")
        tensors = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}

        def gradients(backend, tensors=tensors, grad=grad):
            return torch.autograd.grad(ops.fft_conv(**tensors, backend=backend), list(tensors.values()), grad)

        for found, exact in zip(gradients("eager"), gradients("reference"), strict=True):
            assert_same_pattern(found, exact, 1.0)


def test_upstream_gradients_reach_the_past_only():
    u, kernel, _ = draw(50, dtype=torch.float32)
    u.requires_grad_()
    grad = torch.randn_like(u)
    (clean,) = torch.autograd.grad(ops.fft_conv(u, kernel), u, grad)
    grad[0, 1, 20] = torch.nan
    (found,) = torch.autograd.grad(ops.fft_conv(u, kernel), u, grad)
    assert found[0, 1, :21].isnan().all()
    reached = torch.zeros_like(u, dtype=torch.bool)
    reached[0, 1, :21] = True
    torch.testing.assert_close(found[~reached], clean[~reached], rtol=0, atol=1e-5)


def test_gradients_that_are_derived_again():
    u, kernel, extras = draw(12, batch=2, channels=2)
    u[1, 0, 5] = torch.inf
    reverse = extras["reverse_kernel"]
    tensors = [t.requires_grad_() for t in (u, kernel, reverse)]
    cotangent = [torch.randn_like(t) for t in tensors]

    def twice(backend):
        y = ops.fft_conv(u, kernel, reverse_kernel=reverse, backend=backend)
        found = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        total = sum((g * c).where(g.isfinite(), 0).sum() for g, c in zip(found, cotangent, strict=True))
        return [*found, *torch.autograd.grad(total, tensors)]

    for found, exact in zip(twice("eager"), twice("reference"), strict=True):
        assert_same_pattern(found, exact, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_that_overflowed(dtype):
    u = torch.randn(2, 3, 64).to(dtype)
    u[0, 0, 30] = torch.finfo(dtype).max
    u = u * 2
    kernel = torch.randn(3, 64).to(dtype)
    y = ops.fft_conv(u, kernel)
    assert torch.equal(~y.isfinite(), ~convolve(u, kernel).isfinite())
    torch.testing.assert_close(y[0, 0, :30].double(), convolve(u, kernel)[0, 0, :30], rtol=2e-2, atol=0.2)


def test_finite_numbers_whose_transform_overflows():
    u, kernel = torch.full((2, 3, 64), 1e38), torch.zeros(3, 8)
    kernel[:, 0] = 3.0
    u[1, 2, 10:] = 1.0
    y = ops.fft_conv(u, kernel)
    torch.testing.assert_close(y[u < 2], torch.full_like(y[u < 2], 3.0), rtol=0, atol=1e32)
    torch.testing.assert_close(y[u > 2], torch.full_like(y[u > 2], 3e38))


@pytest.mark.sampled
@pytest.mark.parametrize("backend", ["eager", "reference", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
def test_frozen_kernels(reverse, backend, way):
    u, kernel, extras = draw(40, batch=2, channels=3, lags=6, dtype=torch.float32)
    backwards = extras["reverse_kernel"][:, :4] if reverse else None
    rest = {name: extras[name] for name in ("skip", "pre_gate", "post_gate")}
    frozen = ops.FrozenKernel(kernel, backwards, length=60)
    u[1, 2, 17] = torch.nan
    inputs = [t.requires_grad_() for t in (u, *rest.values())]
    y = ops.fft_conv(u, frozen, **rest, backend=backend)
    grad = torch.randn_like(y)
    grad[0, 1, 20] = torch.inf
    exact = ops.fft_conv(u, kernel, reverse_kernel=backwards, **rest, backend="reference")
    assert_same_pattern(y, exact)
    for a, b in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(exact, inputs, grad), strict=True):
        assert_same_pattern(a, b, 10.0)


def test_a_smoothed_kernel_reaches_everything():
    frozen = ops.FrozenKernel(torch.randn(2, 20), length=20, bandwidth=0.5)
    u = torch.randn(2, 2, 20)
    u[0, 1, 10] = torch.nan
    for backend in BACKENDS:
        y = ops.fft_conv(u, frozen, backend=backend)
        assert y[0, 1].isnan().all()
        assert y[0, 0].isfinite().all()
        assert y[1].isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_compiled_exported_and_mapped(backend):
    u, kernel, _ = draw(16, dtype=torch.float32)
    u[1, 0, 5] = torch.nan

    class Convolution(torch.nn.Module):
        def forward(self, u, kernel):
            return ops.fft_conv(u, kernel, backend=backend)

    exact = convolve(u, kernel)
    compiled = torch.compile(Convolution(), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Convolution(), (torch.randn_like(u), kernel)).module()
    for function in (compiled, exported):
        assert_same_pattern(function(u, kernel), exact)
    mapped = torch.func.vmap(lambda u: ops.fft_conv(u, kernel))
    assert_same_pattern(mapped(u), exact)


@pytest.mark.parametrize("lead", [(), (0,), (2, 2)])
def test_any_leading_shape_and_memory_order(lead):
    _, kernel, _ = draw(20, dtype=torch.float32)
    u = torch.randn(*lead, 20, 3).transpose(-1, -2)
    u[..., 1, 7] = torch.nan
    y = ops.fft_conv(u, kernel)
    assert_same_pattern(y.reshape(-1, 3, 20), convolve(u.reshape(-1, 3, 20), kernel), 1.0)
