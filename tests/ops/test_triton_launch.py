"""Where Triton kernels are launched, and that a call neither copies from the host nor waits for the device.

Meta tensors stand for those of a GPU: torch follows their devices, and refuses to read them.
"""

import ast
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import milkweed
from milkweed import ops

pytest.importorskip("triton")
from triton.runtime import interpreter

from milkweed.ops import _triton_launch as gpu
from milkweed.ops.fft_conv import triton as conv
from milkweed.ops.monarch import _triton_plan as monarch_plan

GPU = torch.device("meta")


class Spy(TorchDispatchMode):
    """Looks into milkweed's own operations too, and keeps what could make the host wait or move numbers to a device."""

    waits = ("item", "_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal", "index.Tensor", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "milkweed":
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        result = func(*args, **kwargs)
        devices = {t.device for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)}
        if devices - {GPU} or any(name in str(func) for name in self.waits):
            self.found.append((str(func), devices))
        return result


def draw(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=GPU)


# Backward passes are called by name, so that no autograd of meta tensors comes between.
BACKWARD = torch.ops.milkweed


def monarch(features, blocks, rows, activation):
    side = features // blocks
    x, right, left, bias = draw(rows, features), draw(blocks, side, side), draw(blocks, side, side), draw(features)
    y = ops.monarch_mm(x, right, left, bias=bias, activation=activation, backend="triton")
    kept = y if activation else draw(0)
    BACKWARD.monarch_mm_triton_backward(y, x, right, left, bias, activation, draw(*x.shape), kept, [True] * 4)


def block_diagonal():
    x, weight, bias = draw(70, 12), draw(3, 5, 4), draw(15)
    y = ops.block_diagonal_mm(x, weight, bias=bias, activation="relu", backend="triton")
    BACKWARD.block_diagonal_mm_triton_backward(y, x, weight, bias, "relu", y, [True] * 3)


def convolution(length, dtype):
    u, pre, post = (draw(3, 2, length, dtype=dtype) for _ in range(3))
    kernel, reverse, skip = draw(2, length), draw(2, length // 2), draw(2)
    y = ops.fft_conv(
        u, kernel, reverse_kernel=reverse, skip=skip, pre_gate=pre, post_gate=post, backend="triton"
    )  # fmt: skip
    BACKWARD.fft_conv_triton_backward(y, u, kernel, reverse, skip, pre, post, [True] * 6)


def diagonal():
    c, dt_a, u = draw(3, 5, 2), draw(3, 5, 2), draw(2, 3, 100)
    y = ops.diagonal_ssm_kernel(c, dt_a, 100, backend="triton")
    BACKWARD.diagonal_ssm_kernel_triton_backward(y[None], c[None], dt_a, True)
    x = ops.diagonal_ssm_state(u, dt_a, backend="triton")
    BACKWARD.diagonal_ssm_state_triton_backward(x, u, dt_a, True, True)


def dense_kernel():
    a, b, c, u = draw(3, 5, 5), draw(3, 5), draw(3, 5), draw(2, 3, 3000)
    y = ops.dense_ssm_kernel(a, b, c, 3000, backend="triton")
    BACKWARD.dense_ssm_kernel_triton_backward(y[None], a, b, c[None], True, True, True)
    x = ops.dense_ssm_state(u, a, b, backend="triton")
    BACKWARD.dense_ssm_state_triton_backward(x, u, a, b, True, True, True)


CALLS = {
    "monarch": lambda: monarch(64, 4, 70, "gelu"),
    "wide monarch": lambda: monarch(4096, 16, 3000, None),
    "block diagonal": block_diagonal,
    "convolution": lambda: convolution(1000, torch.bfloat16),
    "convolution in float32": lambda: convolution(300, torch.float32),
    "long convolution": lambda: convolution(20000, torch.bfloat16),
    "diagonal state spaces": diagonal,
    "dense state spaces": dense_kernel,
}


@pytest.fixture
def launched(monkeypatch):
    """The devices of the tensors of every launch; no kernel runs."""
    found = []

    def run(self, *args, grid, **kwargs):
        found.append({arg.device for arg in args if isinstance(arg, torch.Tensor)})

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run)
    return found


def second_call(monkeypatch, call):
    """What torch does in a call once its constants are there."""
    with Spy():
        call()
    with Spy() as spy, monkeypatch.context() as patch:
        for owner, name in (
            (torch, "tensor"),
            (torch, "as_tensor"),
            (torch, "from_numpy"),
            (torch.Tensor, "new_tensor"),
        ):
            patch.setattr(owner, name, lambda *args, name=name, **kwargs: pytest.fail(f"{name} copies from the host"))
        call()
    return spy.found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_neither_copies_nor_waits(monkeypatch, launched, call):
    assert second_call(monkeypatch, call) == []
    assert launched
    assert all(devices == {GPU} for devices in launched)


@pytest.mark.parametrize("bandwidth", [1.0, 0.1])
def test_nor_does_one_with_a_frozen_kernel(monkeypatch, launched, bandwidth):
    frozen = ops.FrozenKernel(torch.randn(2, 500), torch.randn(2, 9), length=1000, bandwidth=bandwidth)
    frozen.spectrum = frozen.spectrum.to(GPU)
    columns = conv._Run.with_spectrum(draw(3, 2, 1000), 2048, frozen.spectrum.shape[1], *frozen.reach).columns
    assert (len(columns) < 32) == (bandwidth < 1)
    assert second_call(monkeypatch, lambda: ops.fft_conv(draw(3, 2, 1000), frozen, backend="triton")) == []
    # Arranging the spectrum takes no list of columns either.
    frozen._layouts.clear()
    assert second_call(monkeypatch, lambda: ops.fft_conv(draw(3, 2, 1000), frozen, backend="triton")) == []


@pytest.fixture
def second_gpu(monkeypatch):
    """Two GPUs, the first of them current; keeps which one was current at each launch, and how often anyone waited."""
    state = SimpleNamespace(current=0, launched=[], waited=0, capturing=False, tensor=SimpleNamespace())
    state.tensor.device = torch.device("cuda:1")

    @contextlib.contextmanager
    def current(device):
        before, state.current = state.current, device.index
        yield
        state.current = before

    def wait():
        state.waited += 1

    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=wait))
    return state


class Kernel:
    def __init__(self, state):
        self.state = state

    def __getitem__(self, grid):
        return lambda *args, **constants: self.state.launched.append((self.state.current, grid, args, constants))


def test_launches_are_on_the_device_of_the_tensors(second_gpu):
    gpu.launch(Kernel(second_gpu), (3,), second_gpu.tensor, 5, N=2)
    gpu.launch(Kernel(second_gpu), (3, 0), second_gpu.tensor)
    second_gpu.tensor.device = torch.device("cuda:0")
    gpu.launch(Kernel(second_gpu), (1,), second_gpu.tensor)
    gpu.launch(Kernel(second_gpu), (1,), torch.empty(0))
    assert [launch[0] for launch in second_gpu.launched] == [1, 0, 0]
    assert second_gpu.launched[0][1:] == ((3,), (second_gpu.tensor, 5), {"N": 2})
    assert second_gpu.current == 0


def test_constants_are_made_once_for_each_device(second_gpu):
    made = []
    get = gpu.made_once(lambda size, device: made.append((size, device)) or len(made))
    second, first = second_gpu.tensor.device, torch.device("cuda:0")
    assert [get(1, second), get(1, second), get(1, first), get(2, first), get(1, second)] == [1, 1, 2, 3, 1]
    # Another stream may use them next.
    assert second_gpu.waited == 3
    second_gpu.capturing = True
    # Made inside a graph, they are part of it, and have no values before it runs.
    assert [get(3, first), get(3, first), second_gpu.waited] == [4, 5, 3]
    assert get(1, first) == 2


def test_every_kernel_is_launched_by_the_launcher():
    """A launch is the call of a subscript, ``kernel[grid](...)``."""
    found = []
    for path in sorted(Path(milkweed.__file__).parent.rglob("*triton*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                found.append(path.name)
    assert found == ["_triton_launch.py"] * 2


def test_one_launch_for_both_factors_waits_for_a_check(monkeypatch):
    right, left = torch.empty(4, 16, 16), torch.empty(4, 16, 16)
    assert monarch_plan.fused_tile(right, left) is not None  # in the interpreter
    monkeypatch.setattr(monarch_plan, "_is_checked", lambda device: False)
    assert monarch_plan.fused_tile(right, left) is None
    with monarch_plan.one_launch():
        assert monarch_plan.fused_tile(right, left) is not None
    assert monarch_plan.fused_tile(right, left) is None
