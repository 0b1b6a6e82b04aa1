"""The Triton long convolution, in Triton's interpreter, against sums over lags in float64."""

import pytest
import torch

from milkweed import ops

pytest.importorskip("triton")

from tests.ops.test_fft_conv import convolve

from milkweed.ops.fft_conv import _triton_plan as plans
from milkweed.ops.fft_conv import triton

# Relative errors: eight or so roundings of operands inside, then the rounding of the result.
ERRORS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
NAMES = ("u", "kernel", "reverse_kernel", "skip", "pre_gate", "post_gate")


def draw(length, *, lags=None, reverse=None, batch=3, channels=2, dtype=torch.float32, names=NAMES):
    """Arguments by name; u and gates in the dtype, kernels and skip in float32, all wanting gradients."""
    lags, reverse = lags or length, reverse or length
    found = {
        "u": torch.randn(batch, channels, length).to(dtype),
        "kernel": torch.randn(channels, lags) / lags**0.5,
        "reverse_kernel": torch.randn(channels, reverse) / reverse**0.5,
        "skip": torch.randn(channels),
        "pre_gate": torch.randn(batch, channels, length).to(dtype),
        "post_gate": torch.randn(batch, channels, length).to(dtype),
    }
    return {name: found[name].requires_grad_() for name in names}


def run(arguments, backend):
    arguments = dict(arguments)
    y = ops.fft_conv(arguments.pop("u"), arguments.pop("kernel"), **arguments, backend=backend)
    return y, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)


def exactly(arguments):
    """Values by direct sums; gradients of the reference backend, whose values those sums check."""
    double = {name: t.detach().double().requires_grad_() for name, t in arguments.items()}
    y, weight = run(double, "reference")
    v = double["u"] * double.get("pre_gate", 1)
    reverse = double["reverse_kernel"].detach() if "reverse_kernel" in double else None
    direct = convolve(v.detach(), double["kernel"].detach(), reverse)
    if "skip" in double:
        direct = direct + (double["skip"][:, None] * v).detach()
    torch.testing.assert_close(y.detach(), direct * double.get("post_gate", torch.tensor(1.0)).detach())
    return [y, *torch.autograd.grad(y, double.values(), weight)]


def check(arguments, error):
    y, weight = run(arguments, "triton")
    found = [y, *torch.autograd.grad(y, arguments.values(), weight)]
    v = arguments["u"].double() * arguments.get("pre_gate", 1)
    # One number is the sum of all these, and may be small beside them.
    terms = (v * weight * arguments.get("post_gate", 1)).detach().norm()
    for name, a, b in zip(["y", *arguments], found, exactly(arguments), strict=True):
        distance = (a.double() - b).norm()
        assert distance <= error * (terms if name == "skip" else b.norm()), (name, distance / b.norm())


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("length", [1, 63, 300, 997])
def test_everything_at_once(length, dtype):
    arguments = draw(length, reverse=max(1, length // 3), dtype=dtype)
    check(arguments, ERRORS[dtype])


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3], (*NAMES[:2], "skip", "post_gate"), (*NAMES[:2], "pre_gate")])
def test_any_part_may_be_missing(names):
    check(draw(200, names=names), 1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("lags", "reverse"), [(20, 11), (1, 30), (40, 1)])
def test_short_kernels_take_windows(lags, reverse, dtype):
    assert triton.make_plan(700, lags, reverse, torch.float32, torch.device("cpu")).chunks > 1
    check(draw(700, lags=lags, reverse=reverse, dtype=dtype, batch=2, channels=1), ERRORS[dtype])


@pytest.fixture
def _little_memory(monkeypatch):
    """Programs that hold 256 points at most."""
    for name in ("_LARGEST", "_LARGEST_SUM"):
        monkeypatch.setattr(plans, name, dict.fromkeys(plans._LARGEST, 256))
    plans.make_plan.cache_clear()
    yield
    plans.make_plan.cache_clear()


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("dtype", ERRORS)
def test_transforms_split_through_memory(dtype):
    arguments = draw(1999, reverse=1500, batch=3, channels=1, dtype=dtype)
    assert triton.make_plan(1999, 1999, 1500, torch.float32, torch.device("cpu")).outer == 16
    # Between the stages bfloat16 keeps the range of float32, and half-precision signals pass through it twice.
    check(arguments, 1e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("points", plans._UNMEASURED)
def test_every_tile(points, monkeypatch):
    for name in ("_LARGEST", "_LARGEST_SUM"):
        monkeypatch.setattr(plans, name, dict.fromkeys(plans._LARGEST, points))
    plans.make_plan.cache_clear()
    check(draw(points // 2, batch=2, channels=1, names=("u", "kernel")), 1e-6)
    plans.make_plan.cache_clear()


def test_numbers_far_from_one():
    """float16 inside a transform must neither overflow nor vanish: tiles carry a scale of their own."""
    for scale in (1e30, 1e-30):
        arguments = {n: t.detach().mul(scale if n == "u" else 1).requires_grad_() for n, t in draw(300).items()}
        arguments["u"] = arguments["u"].detach().bfloat16().requires_grad_()
        check(arguments, 5e-3)
    large = {"u": torch.full((1, 1, 300), 6e4).half(), "kernel": torch.full((1, 300), 3e-3)}
    y = ops.fft_conv(**large, backend="triton")
    exact = convolve(large["u"], large["kernel"])
    assert (y.double() - exact).norm() / exact.norm() < 1e-3
    silent = ops.fft_conv(torch.zeros(2, 1, 300).half(), torch.zeros(1, 300), backend="triton")
    assert not silent.any()


def test_channels_in_blocks(monkeypatch):
    arguments = draw(130, channels=5)
    monkeypatch.setattr(triton, "_MEMORY", 2 * 512 * 40)
    assert len(list(triton._Run.with_kernels(*list(arguments.values())[:3]).channel_blocks())) > 1
    check(arguments, 1e-6)


def test_memory_order_follows_the_input():
    u, kernel = torch.randn(2, 50, 3).transpose(1, 2), torch.randn(3, 50)
    y = ops.fft_conv(u, kernel, backend="triton")
    assert y.stride() == u.stride()
    torch.testing.assert_close(y.double(), convolve(u, kernel), rtol=1e-5, atol=1e-5)
    strided = torch.randn(2, 3, 100)[..., ::2].requires_grad_()
    y = ops.fft_conv(strided, kernel, backend="triton")
    torch.testing.assert_close(y.detach().double(), convolve(strided.detach(), kernel), rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(y.sum(), strided)
    assert grad.shape == strided.shape


@pytest.mark.parametrize("lead", [(), (2, 2), (0,)])
def test_any_leading_shape(lead):
    u, kernel = torch.randn(*lead, 3, 20, requires_grad=True), torch.randn(3, 20, requires_grad=True)
    y = ops.fft_conv(u, kernel, backend="triton")
    flat = convolve(u.detach().reshape(-1, 3, 20), kernel.detach())
    torch.testing.assert_close(y.detach().double(), flat.reshape(u.shape), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert u.grad.shape == u.shape
    assert kernel.grad.isfinite().all()


def test_second_derivative_and_checks_of_the_operator():
    arguments = draw(20, batch=2, channels=2, reverse=5)
    values = list(arguments.values())
    torch.library.opcheck(torch.ops.milkweed.fft_conv_triton, tuple(values))

    def second(backend):
        y, _ = run(arguments, backend)
        grads = torch.autograd.grad(y.sin().sum(), values, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in grads), values)

    for a, b in zip(second("triton"), second("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_compiles_and_autocasts():
    arguments = draw(40, names=("u", "kernel"))
    compiled = torch.compile(
        lambda u, k: ops.fft_conv(u, k, backend="triton"), fullgraph=True, backend="aot_eager", dynamic=True
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):  # transforms keep their precision
        y = compiled(arguments["u"], arguments["kernel"])
    exact = exactly(arguments)[0]
    assert (y.double() - exact).norm() / exact.norm() < 1e-6


def test_what_is_too_long_is_refused_and_windows_are_not():
    """A kernel as long as the signal; memory stands for none of these."""
    u = torch.empty(1, 1, 1, device="meta").expand(1, 1, 2**22)
    with pytest.raises(ValueError, match=r"transforms of 524288 points at most here, got 4194304 steps"):
        ops.fft_conv(u, torch.empty(1, 2**22, device="meta"), backend="triton")
    with pytest.raises(ValueError, match="points at most"):
        ops.fft_conv(u.half(), torch.empty(1, 2**22, device="meta"), backend="triton")
    for dtype in (torch.float32, torch.float16):
        assert plans.too_long(u.to(dtype), 2**22 + 1000, 1000, True) is None
        assert plans.make_plan(2**22, 1000, 0, plans.operands(u.to(dtype)), u.device, True).chunks > 1
        for length in (2**18, 2**19, 2**20):
            points = 2 * length - 1
            fits = plans.too_long(u.to(dtype), points, length, False) is None
            plan = plans.make_plan(length, length, 0, plans.operands(u.to(dtype)), u.device)
            assert fits == (plan.outer <= 256)


def test_float64_is_refused():
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, got torch\.float64"):
        ops.fft_conv(torch.randn(1, 1, 8).double(), torch.randn(1, 8).double(), backend="triton")
