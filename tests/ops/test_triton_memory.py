"""The memory that Triton's kernels touch, over every subset of wanted gradients and of arguments that may be absent."""

import itertools

import pytest
import torch
from tests.ops.test_dense_ssm_kernel import draw as draw_dense
from tests.ops.test_dense_ssm_kernel import kernel as dense_kernel
from tests.ops.test_dense_ssm_kernel import state as dense_state
from tests.ops.test_monarch import dense_monarch
from tests.ops.test_ssm_kernel import draw as draw_diagonal
from tests.ops.test_ssm_kernel import kernel as diagonal_kernel
from tests.ops.test_ssm_kernel import state as diagonal_state

from milkweed import ops

pytest.importorskip("triton")

from tests.ops.triton_guard import guarded

from milkweed.ops.fft_conv import _triton_plan as plans
from milkweed.ops.fft_conv import triton as conv

NAMES = ("u", "kernel", "reverse_kernel", "skip", "pre_gate", "post_gate")
OPTIONS = NAMES[2:]


def subsets(items, least=1):
    return [chosen for count in range(least, len(items) + 1) for chosen in itertools.combinations(items, count)]


def assert_near(found, exact, tolerance, what=""):
    assert found.shape == exact.shape, what
    scale = exact.abs().max().clamp_min(1e-30)
    assert (found.double() - exact).abs().max() <= tolerance * scale, what


def check_subsets(monkeypatch, function, exact, tensors, tolerance=1e-4, wanted_sets=None):
    """Values and the gradients of every subset of the tensors, under guard, against float64 and autograd."""
    wide = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    expected = exact(**wide)
    cotangent = torch.randn(expected.shape)
    grads = torch.autograd.grad(expected, wide.values(), cotangent.double(), allow_unused=True, materialize_grads=True)
    truth = dict(zip(wide, grads, strict=True))
    for wanted in wanted_sets or subsets(tuple(tensors)):
        active = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
        with guarded(monkeypatch) as guard:
            y = function(**active)
            found = torch.autograd.grad(y, [active[name] for name in wanted], cotangent.to(y.dtype))
        assert guard.launches
        assert_near(y.detach(), expected.detach(), tolerance, wanted)
        for name, grad in zip(wanted, found, strict=True):
            assert_near(grad, truth[name], tolerance, (wanted, name))


# The long convolution ---------------------------------------------------------------------------------------------


def draw(length=37, lags=None, reverse=None, batch=3, channels=2, names=NAMES):
    """A batch of an odd number of signals, so two pairs, and two channels; every tensor is a strided view."""
    lags, reverse = lags or length, reverse or length // 2
    shapes = {
        "u": (batch, channels, length),
        "kernel": (channels, lags),
        "reverse_kernel": (channels, reverse),
        "skip": (channels,),
        "pre_gate": (batch, channels, length),
        "post_gate": (batch, channels, length),
    }
    return {name: torch.randn(*shapes[name][:-1], 2 * shapes[name][-1])[..., 1::2] for name in names}


def literal(u, kernel, reverse_kernel=None, skip=None, pre_gate=None, post_gate=None):
    """The definition, lag by lag, with no term that is not there: also right for what is not finite."""
    v = u if pre_gate is None else pre_gate * u
    length = u.shape[-1]
    terms = [torch.nn.functional.pad(kernel[:, j, None] * v[..., : length - j], (j, 0)) for j in range(kernel.shape[1])]
    for r in range(1, 1 + (0 if reverse_kernel is None else reverse_kernel.shape[1])):
        if r < length:
            terms.append(torch.nn.functional.pad(reverse_kernel[:, r - 1, None] * v[..., r:], (0, r)))
    y = sum(terms) if skip is None else sum(terms) + skip[:, None] * v
    return y if post_gate is None else post_gate * y


def convolve(u, kernel, **rest):
    return ops.fft_conv(u, kernel, **rest, backend="triton")


@pytest.fixture
def _channel_blocks(monkeypatch):
    """Memory for the spectrum of one channel."""
    monkeypatch.setattr(conv._Run, "channel_blocks", lambda run: (slice(h, h + 1) for h in range(run.channels)))


@pytest.fixture
def _little_memory(monkeypatch):
    """Programs that hold 256 points at most."""
    for name in ("_LARGEST", "_LARGEST_SUM"):
        monkeypatch.setattr(plans, name, dict.fromkeys(plans._LARGEST, 256))
    plans.make_plan.cache_clear()
    yield
    plans.make_plan.cache_clear()


@pytest.mark.usefixtures("_channel_blocks")
def test_every_subset_of_gradients_of_the_convolution(monkeypatch, pytestconfig):
    tensors = draw()
    wide = {name: t.double().requires_grad_() for name, t in tensors.items()}
    expected = literal(**wide)
    cotangent = torch.randn(expected.shape)
    truth = torch.autograd.grad(expected, wide.values(), cotangent.double())
    for wanted in subsets(NAMES)[:: -1 if pytestconfig.getoption("all_cases") else -5]:
        needed = [name in wanted for name in NAMES]
        with guarded(monkeypatch) as guard:
            found = torch.ops.milkweed.fft_conv_triton_backward(cotangent, *tensors.values(), needed)
        assert guard.launches
        for name, need, grad, exact in zip(NAMES, needed, found, truth, strict=True):
            if need:
                assert_near(grad, exact, 1e-5, (wanted, name))


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("_channel_blocks")
@pytest.mark.parametrize("present", subsets(OPTIONS, 0), ids="-".join)
def test_every_subset_of_options_of_the_convolution(monkeypatch, present):
    tensors = draw(names=(*NAMES[:2], *present))
    wide = {name: t.double().requires_grad_() for name, t in tensors.items()}
    expected = literal(**wide)
    cotangent = torch.randn(expected.shape)
    truth = torch.autograd.grad(expected, wide.values(), cotangent.double())
    active = {name: t.requires_grad_() for name, t in tensors.items()}
    with guarded(monkeypatch):
        y = convolve(**active)
        found = torch.autograd.grad(y, active.values(), cotangent)
    assert_near(y.detach(), expected.detach(), 1e-5)
    for name, grad, exact in zip(active, found, truth, strict=True):
        assert_near(grad, exact, 1e-5, name)


SOME = [("pre_gate",), ("u",), ("kernel",), ("reverse_kernel",), ("skip",), ("post_gate",), ("u", "pre_gate"), NAMES]


@pytest.mark.usefixtures("_channel_blocks")
def test_memory_of_windows(monkeypatch):
    tensors = draw(700, lags=5, reverse=3)
    assert conv.make_plan(700, 5, 3, torch.float32, torch.device("cpu")).chunks > 1
    check_subsets(monkeypatch, convolve, literal, tensors, wanted_sets=SOME)


@pytest.mark.usefixtures("_channel_blocks", "_little_memory")
def test_memory_of_split_transforms(monkeypatch):
    tensors = draw(1100, lags=1000, reverse=40)
    assert conv.make_plan(1100, 1000, 40, torch.float32, torch.device("cpu")).outer > 1
    check_subsets(monkeypatch, convolve, literal, tensors, wanted_sets=[("pre_gate",), NAMES])


@pytest.mark.sampled
@pytest.mark.usefixtures("_channel_blocks")
@pytest.mark.parametrize("length", [1, 2, 256, 257])
@pytest.mark.parametrize("batch", [1, 2])
def test_memory_at_edges(monkeypatch, batch, length):
    tensors = draw(length, reverse=length, batch=batch, channels=1 if length == 2 else 2)
    check_subsets(monkeypatch, convolve, literal, tensors, wanted_sets=[NAMES, ("pre_gate",)])


@pytest.mark.usefixtures("_channel_blocks")
@pytest.mark.parametrize("bandwidth", [1.0, 0.3])
def test_memory_of_a_frozen_kernel(monkeypatch, bandwidth):
    tensors = draw(300)
    lags = [tensors.pop(name) for name in ("kernel", "reverse_kernel")]
    frozen = ops.FrozenKernel(*lags, length=300, bandwidth=bandwidth)
    u = tensors.pop("u")
    with guarded(monkeypatch) as guard:
        y = ops.fft_conv(u, frozen, **tensors, backend="triton")
    assert guard.launches
    wide = {name: t.double() for name, t in tensors.items()}
    exact = ops.FrozenKernel(*(t.double() for t in lags), length=300, bandwidth=bandwidth)
    assert_near(y, ops.fft_conv(u.double(), exact, **wide, backend="reference"), 1e-5)


# The other operations ----------------------------------------------------------------------------------------------


def strided(t):
    """The same numbers with other memory between them."""
    return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]


def transposed(t):
    """The same numbers, dense, in the order of the turned tensor."""
    return t.mT.contiguous().mT


@pytest.mark.sampled
@pytest.mark.parametrize("view", [strided, transposed])
@pytest.mark.parametrize("shape", [(2, 3, 5, 2, 3, 7), (4, 8, 5, 4, 7, 33), (3, 7, 5, 3, 4, 9)], ids=str)
@pytest.mark.parametrize("launches", [1, 2])
def test_memory_of_a_monarch_multiply(monkeypatch, view, shape, launches):
    from milkweed.ops.monarch import triton

    if launches == 2:
        monkeypatch.setattr(triton, "fused_tile", lambda right, left: None)
    k, q, p, l, s, rows = shape  # noqa: E741
    tensors = {
        "x": view(torch.randn(rows, k * p)),
        "right": view(torch.randn(k, q, p)),
        "left": view(torch.randn(l, s, k * q // l)),
        "bias": strided(torch.randn(l * s)),
    }

    def exact(x, right, left, bias):
        return torch.nn.functional.silu(x @ dense_monarch(right, left).T + bias)

    def ours(x, right, left, bias):
        return ops.monarch_mm(x, right, left, bias=bias, activation="silu", backend="triton")

    check_subsets(monkeypatch, ours, exact, tensors)


@pytest.mark.parametrize("view", [strided, transposed])
def test_memory_of_a_block_diagonal_multiply(monkeypatch, view):
    tensors = {"x": view(torch.randn(70, 15)), "weight": view(torch.randn(3, 7, 5)), "bias": strided(torch.randn(21))}

    def exact(x, weight, bias):
        return torch.nn.functional.relu(x @ torch.block_diag(*weight).T + bias)

    def ours(x, weight, bias):
        return ops.block_diagonal_mm(x, weight, bias=bias, activation="relu", backend="triton")

    check_subsets(monkeypatch, ours, exact, tensors)


@pytest.mark.sampled
@pytest.mark.parametrize("view", [strided, transposed])
@pytest.mark.parametrize("length", [1, 65, 1100])
def test_memory_of_diagonal_state_spaces(monkeypatch, view, length):
    c, dt_a = (view(t) for t in draw_diagonal(3, modes=5, dtype=torch.float32))

    def ours(c, dt_a):
        return ops.diagonal_ssm_kernel(c, dt_a, length, backend="triton")

    check_subsets(
        monkeypatch,
        ours,
        lambda c, dt_a: diagonal_kernel(c.contiguous(), dt_a.contiguous(), length),
        {"c": c, "dt_a": dt_a},
    )
    tensors = {"u": view(torch.randn(2, 3, length)), "dt_a": dt_a}
    check_subsets(
        monkeypatch,
        lambda u, dt_a: ops.diagonal_ssm_state(u, dt_a, backend="triton"),
        lambda u, dt_a: diagonal_state(u, dt_a.contiguous()),
        tensors,
    )


@pytest.mark.parametrize(("length", "view"), [(1, strided), (65, transposed), (1100, transposed)])
def test_memory_of_dense_state_spaces(monkeypatch, view, length):
    a, b, c = (view(t.detach()) for t in draw_dense(2, modes=3, dtype=torch.float32))

    def ours(a, b, c):
        return ops.dense_ssm_kernel(a, b, c, length, backend="triton")

    check_subsets(monkeypatch, ours, lambda a, b, c: dense_kernel(a, b, c, length), {"a": a, "b": b, "c": c}, 1e-3)
    tensors = {"u": view(torch.randn(2, 2, length)), "a": a, "b": b}
    check_subsets(
        monkeypatch, lambda u, a, b: ops.dense_ssm_state(u, a, b, backend="triton"), dense_state, tensors, 1e-3
    )
