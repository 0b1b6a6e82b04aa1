"""What is not finite in a long convolution in Triton: it reaches what depends on it by definition, and nothing else."""

import math

import pytest
import torch

from milkweed import ops

pytest.importorskip("triton")

from tests.ops.test_triton_memory import NAMES, literal
from tests.ops.triton_guard import guarded

from milkweed.ops.fft_conv import _triton_plan as plans
from milkweed.ops.fft_conv import triton as conv

# The interpreter computes with numpy, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

BATCH = 3
# Length, lags, reverse lags, channels; points that a program holds at most. Signals are whole in one program, or in
# windows that overlap, or their transforms are split through memory.
WAYS = {
    "whole": (40, 40, 0, 2, None),
    "whole, both directions": (40, 7, 5, 2, None),
    "windows": (400, 30, 0, 2, None),
    "windows, both directions": (400, 30, 9, 2, None),
    "split": (1900, 260, 40, 1, 256),
}
BAD = [math.nan, math.inf, -math.inf]


def draw(length, lags, reverse, channels=2, dtype=torch.float32):
    shapes = {
        "u": (BATCH, channels, length),
        "kernel": (channels, lags),
        "reverse_kernel": (channels, reverse),
        "skip": (channels,),
        "pre_gate": (BATCH, channels, length),
        "post_gate": (BATCH, channels, length),
        "cotangent": (BATCH, channels, length),
    }
    signals = ("u", "pre_gate", "post_gate", "cotangent")
    return {
        name: torch.randn(shape).to(dtype if name in signals else torch.float32)
        for name, shape in shapes.items()
        if 0 not in shape
    }


@pytest.fixture
def way(request, monkeypatch):
    length, lags, reverse, channels, most = WAYS[request.param]
    if most:
        for name in ("_LARGEST", "_LARGEST_SUM"):
            monkeypatch.setattr(plans, name, dict.fromkeys(plans._LARGEST, most))
    plans.make_plan.cache_clear()
    plan = conv.make_plan(length, lags, reverse, torch.float32, torch.device("cpu"))
    assert (plan.chunks > 1, plan.outer > 1) == ("windows" in request.param, "split" in request.param)
    yield length, lags, reverse, channels
    plans.make_plan.cache_clear()


def by_definition(tensors):
    wide = {name: t.double() for name, t in tensors.items()}
    cotangent = wide.pop("cotangent")
    active = {name: t.requires_grad_() for name, t in wide.items()}
    y = literal(**active)
    return {"y": y.detach(), **dict(zip(active, torch.autograd.grad(y, active.values(), cotangent), strict=True))}


def ours(monkeypatch, tensors):
    active = {name: t.clone().requires_grad_() for name, t in tensors.items() if name != "cotangent"}
    with guarded(monkeypatch):
        y = ops.fft_conv(**active, backend="triton")
        grads = torch.autograd.grad(y, active.values(), tensors["cotangent"])
    return {"y": y.detach(), **dict(zip(active, grads, strict=True))}


def check(monkeypatch, tensors, tolerance=1e-4):
    exact, found = by_definition(tensors), ours(monkeypatch, tensors)
    for name, truth in exact.items():
        assert torch.equal(found[name].isfinite(), truth.isfinite()), name
        finite = truth.isfinite()
        error = (found[name].double() - truth)[finite].abs()
        scale = truth[finite].abs().max() if finite.any() else 0
        assert (error <= tolerance * scale).all(), name


def one_argument_each():
    for way, (_, _, reverse, _, most) in WAYS.items():
        # What a split transform does with gates and the skip it does not do by itself.
        for name in ("u", "kernel", "reverse_kernel", "cotangent") if most else (*NAMES, "cotangent"):
            if name != "reverse_kernel" or reverse:
                yield pytest.param(way, name, id=f"{way}-{name}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("way", "name"), list(one_argument_each()), indirect=["way"])
def test_one_number(monkeypatch, way, name):
    length, lags, reverse, _ = way
    tensors = draw(*way)
    where = {"kernel": (-1, lags // 2), "reverse_kernel": (-1, reverse // 2), "skip": (-1,)}.get(
        name, (1, 0, length // 2)
    )
    tensors[name][where] = BAD[len(name) % 3]
    check(monkeypatch, tensors)


@pytest.mark.sampled
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_kind_and_dtype(monkeypatch, bad, dtype):
    tensors = draw(60, 12, 4, dtype=dtype)
    tensors["u"][2, 1, [20, 55]] = bad
    check(monkeypatch, tensors, 1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("way", ["whole, both directions", "windows, both directions", "split"], indirect=True)
def test_several_numbers_at_edges(monkeypatch, way):
    """First and last steps, both signals of a pair, the last one that has no partner, and kernels at once."""
    length, _, reverse, _ = way
    tensors = draw(*way)
    tensors["u"][0, 0, 0] = math.nan
    tensors["pre_gate"][0, 0, length - 1] = math.inf
    tensors["u"][1, 0, [length // 3, length // 3 + 1, length - 2]] = -math.inf
    tensors["u"][2, -1, length - 1] = math.nan
    tensors["cotangent"][0, -1, 3] = math.nan
    check(monkeypatch, tensors)
    tensors["kernel"][0, -1] = math.inf
    tensors["reverse_kernel"][0, reverse - 1] = math.nan
    check(monkeypatch, tensors)


@pytest.mark.parametrize("way", ["whole", "windows"], indirect=True)
def test_nothing_finite_at_all(monkeypatch, way):
    tensors = draw(*way)
    tensors["u"].fill_(math.nan)
    check(monkeypatch, tensors)


def test_zero_times_infinity(monkeypatch):
    tensors = draw(40, 40, 0)
    tensors["u"][0, 0, 20], tensors["pre_gate"][0, 0, 20] = 0.0, math.inf
    tensors["post_gate"][0, 0, 30] = 0.0
    check(monkeypatch, tensors)


@pytest.mark.parametrize("points", [256, 4096])
def test_a_frozen_kernel_stays_causal(monkeypatch, points):
    if points > 256:
        monkeypatch.setattr(plans, "_LARGEST", dict.fromkeys(plans._LARGEST, 256))
    length = points // 2
    u, kernel, reverse = torch.randn(3, 2, length), torch.randn(2, 30), torch.randn(2, 4)
    u[0, 1, 60] = math.nan
    with guarded(monkeypatch):
        found = ops.fft_conv(u, ops.FrozenKernel(kernel, reverse, length=length), backend="triton")
    exact = literal(u.double(), kernel.double(), reverse.double())
    assert torch.equal(found.isfinite(), exact.isfinite())
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4, equal_nan=True)
    # Without its high frequencies it has every lag, the future's too: only other signals are spared.
    smooth = ops.FrozenKernel(kernel, length=length, bandwidth=0.2)
    found = ops.fft_conv(u, smooth, backend="triton")
    assert found[0, 1].isnan().all()
    found[0, 1] = 0
    assert found.isfinite().all()


def test_a_frozen_kernel_that_is_not_finite_spoils_its_own_channel():
    kernel = torch.randn(3, 20)
    kernel[1, 5] = math.inf
    y = ops.fft_conv(torch.randn(2, 3, 20), ops.FrozenKernel(kernel, length=20), backend="triton")
    assert not y[:, 1].isfinite().any()
    assert y[:, [0, 2]].isfinite().all()
