"""The Triton backend of dense_ssm_kernel and dense_ssm_state, in Triton's interpreter, against float64 loops."""

import numpy as np
import pytest
import torch
from tests.ops.test_dense_ssm_kernel import draw, fout, kernel, relative, state
from tests.ops.test_kernel_truth import errors, unrolled

from milkweed import ops, ssm

pytest.importorskip("triton")
from triton.runtime import interpreter

_create_dot = interpreter.InterpreterBuilder.create_dot

LENGTHS = [1, 2, 3, 63, 64, 65, 997, 1000, 1025, 4096]


def draw_float32(*lead, **options):
    return [t.requires_grad_() for t in draw(*lead, **options, dtype=torch.float32)]


def in_float64(tensors):
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def assert_same_gradients(found, exact, inputs, exact_inputs, tolerance=1e-5):
    wanted, exact_wanted = ([t for t in given if t.requires_grad] for given in (inputs, exact_inputs))
    cotangent = torch.randn(exact.shape)
    grads = torch.autograd.grad(found, wanted, cotangent.to(found.dtype))
    expected = torch.autograd.grad(exact, exact_wanted, cotangent.double(), allow_unused=True, materialize_grads=True)
    for x, y in zip(grads, expected, strict=True):
        scale = y.abs().max().clamp_min(1e-30).item()
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("length", LENGTHS)
def test_kernel_and_gradients(length):
    inputs = draw_float32(3)
    exact_inputs = in_float64(inputs)
    found, exact = ops.dense_ssm_kernel(*inputs, length, backend="triton"), kernel(*exact_inputs, length)
    assert relative(found, exact) < 1e-6
    assert_same_gradients(found, exact, inputs, exact_inputs)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("length", [1, 63, 1000, 1500])
def test_batches_share_a_system(length):
    a, b, _ = draw_float32(2, modes=17)
    for inputs in ((a, b, torch.randn(3, 2, 17).requires_grad_()), (a, torch.randn(3, 2, 17).requires_grad_(), b)):
        exact_inputs = in_float64(inputs)
        found, exact = ops.dense_ssm_kernel(*inputs, length, backend="triton"), kernel(*exact_inputs, length)
        assert relative(found, exact) < 1e-6
        assert_same_gradients(found, exact, inputs, exact_inputs)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("length", [1, 2, 63, 997, 1500])
def test_state_and_gradients(length):
    a, b, _ = draw_float32(3)
    inputs = [torch.randn(2, 3, length).requires_grad_(), a, b]
    exact_inputs = in_float64(inputs)
    found, exact = ops.dense_ssm_state(*inputs, backend="triton"), state(*exact_inputs)
    assert relative(found, exact) < 1e-6
    assert_same_gradients(found, exact, inputs, exact_inputs)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_some_gradients(needed):
    inputs = [t.detach().requires_grad_(bool(need)) for t, need in zip(draw_float32(2), needed, strict=True)]
    exact_inputs = in_float64(inputs)
    found, exact = ops.dense_ssm_kernel(*inputs, 1100, backend="triton"), kernel(*exact_inputs, 1100)
    assert_same_gradients(found, exact, inputs, exact_inputs)
    a, b, _ = inputs
    if needed[0] or needed[1]:
        u = torch.randn(1, 2, 77)
        exact_a, exact_b, _ = exact_inputs
        found, exact = ops.dense_ssm_state(u, a, b, backend="triton"), state(u, exact_a, exact_b)
        assert_same_gradients(found, exact, (a, b), (exact_a, exact_b))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["legs", "legt", "fout"])
def test_error_at_16k(name):
    """As in test_kernel_truth, in the coordinates and at the steps of layers."""
    A, B = ssm.hippo(name, 64 - ssm.BASES[name].fourier)
    steps = torch.tensor([1e-4, 1e-1], dtype=torch.float64)
    a, b = ssm.discretize(A.expand(2, -1, -1), B.expand(2, -1), steps, "bilinear")
    inputs = [t.float() for t in (a, b, torch.randn(b.shape, dtype=torch.float64))]
    exact = unrolled(*(t.double() for t in inputs), 16384)
    assert (errors(ops.dense_ssm_kernel(*inputs, 16384, backend="triton"), exact) < 2e-5).all()


def three_tf32_passes(self, a, b, total, precision, *rest):
    """Multiply as a device does: with both operands as sums of two TF32 numbers, less the product of the small ones."""

    def tf32(x):
        return (np.ascontiguousarray(x).view(np.int32) & ~0x1FFF).view(np.float32)

    if "TF32x3" not in str(precision):
        return _create_dot(self, a, b, total, precision, *rest)
    (high_a, low_a), (high_b, low_b) = ((tf32(x), tf32(x - tf32(x))) for x in (a.data, b.data))
    product = high_a @ high_b + (high_a @ low_b + low_a @ high_b)
    return interpreter.TensorHandle(product + total.data, total.dtype.scalar)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["legsd", "fout"])
def test_error_at_16k_with_the_precision_of_devices(name, monkeypatch):
    # With squares in three passes too, the first errs by 2e-4.
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", three_tf32_passes)
    A, B = ssm.hippo(name, 64 - ssm.BASES[name].fourier)
    steps = torch.tensor([1e-4, 1e-2], dtype=torch.float64)
    a, b = ssm.discretize(A.expand(2, -1, -1), B.expand(2, -1), steps, "bilinear")
    inputs = [t.float().requires_grad_() for t in (a, b, torch.randn(b.shape, dtype=torch.float64))]
    exact_inputs = in_float64(inputs)
    found, exact = ops.dense_ssm_kernel(*inputs, 16384, backend="triton"), unrolled(*exact_inputs, 16384)
    assert (errors(found, exact) < 3e-5).all()
    cotangent = torch.randn(exact.shape)
    grads = torch.autograd.grad(found, inputs, cotangent)
    for x, y in zip(grads, torch.autograd.grad(exact, exact_inputs, cotangent.double()), strict=True):
        assert relative(x, y) < 2e-4


def test_slow_modes_keep_their_digits():
    # Squared with the identity in, this errs by 1e-3.
    inputs = draw_float32(1, system=fout, modes=64, dt=1e-4)
    exact_inputs = in_float64(inputs)
    found, exact = ops.dense_ssm_kernel(*inputs, 4096, backend="triton"), kernel(*exact_inputs, 4096)
    assert relative(found, exact) < 1e-5
    assert_same_gradients(found, exact, inputs, exact_inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    a, b, c = draw_float32(3)
    half, u = c.detach().to(dtype).requires_grad_(), torch.randn(2, 3, 100).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.dense_ssm_kernel(a, b, half, 100, backend="triton")
        x = ops.dense_ssm_state(u, a, b, backend="triton")
    assert y.dtype == dtype
    exact_inputs = in_float64((a, b, half))
    exact = kernel(*exact_inputs, 100)
    assert relative(y, exact) < torch.finfo(dtype).eps
    assert_same_gradients(y, exact, (half,), exact_inputs[2:], tolerance=2 * torch.finfo(dtype).eps)
    assert x.dtype == torch.float32
    assert relative(x, state(u, a, b)) < 1e-6


def test_strides():
    a, b, c = (t.detach() for t in draw_float32(3))
    turned = a.mT.contiguous().mT
    strided = torch.stack([c, c], -1)[..., 0]
    assert relative(ops.dense_ssm_kernel(turned, b, strided, 50, backend="triton"), kernel(a, b, c, 50)) < 1e-6
    u = torch.randn(2, 50, 3).transpose(1, 2)
    assert relative(ops.dense_ssm_state(u, turned, b, backend="triton"), state(u, a, b)) < 1e-6


def test_empty_batch():
    a, b, _ = draw_float32(3)
    c = torch.randn(0, 3, 6, requires_grad=True)
    y = ops.dense_ssm_kernel(a, b, c, 20, backend="triton")
    assert y.shape == (0, 3, 20)
    for grad, like in zip(torch.autograd.grad(y.sum(), (a, b, c)), (a, b, c), strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(like))
    x = ops.dense_ssm_state(torch.randn(0, 3, 20), a, b, backend="triton")
    assert x.shape == (0, 3, 6)
    for grad, like in zip(torch.autograd.grad(x.sum(), (a, b)), (a, b), strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(like))


def test_second_derivatives():
    inputs = draw_float32(2, modes=2, dt=0.1)

    def twice(function, inputs):
        grads = torch.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    expected = twice(lambda a, b, c: kernel(a, b, c, 7), in_float64(inputs))
    found = twice(lambda a, b, c: ops.dense_ssm_kernel(a, b, c, 7, backend="triton"), inputs)
    for x, y in zip(found, expected, strict=True):
        assert relative(x, y) < 1e-4


def test_compiles_with_changing_length():
    def function(u, a, b, c):
        k = ops.dense_ssm_kernel(a, b, c, u.shape[-1], backend="triton")
        return k.sum() + ops.dense_ssm_state(u, a, b, backend="triton").sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    system = draw_float32(3)
    for batch, length in ((2, 10), (3, 33), (4, 100)):
        inputs = [torch.randn(batch, 3, length, requires_grad=True), *system]
        found, expected = (torch.autograd.grad(run(*inputs), inputs) for run in (compiled, function))
        torch.testing.assert_close(found, expected)


def test_custom_ops_are_consistent():
    from milkweed.ops.dense_ssm_kernel import triton

    a, b, c = draw_float32(3)
    u = torch.randn(2, 3, 20, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.dense_ssm_kernel, (a, b, c.detach()[None].requires_grad_(), 20), test_utils=checks)
    torch.library.opcheck(triton.dense_ssm_state, (u, a, b), test_utils=checks)


def test_choice():
    a, b, c = (t.detach() for t in draw_float32(2))
    assert ops.available_backends("dense_ssm_kernel") == ("triton", "eager", "reference", "export", "float64")
    assert ops.explain("dense_ssm_kernel", a, b, c[None], 10).backend == "eager"
    large = torch.eye(65).expand(2, 65, 65)
    with pytest.raises(ValueError, match=r"of N <= 64, got N=65; use backend='eager'"):
        ops.dense_ssm_kernel(large, torch.zeros(2, 65), torch.zeros(2, 65), 10, backend="triton")
    with pytest.raises(ValueError, match=r"of N <= 64, got N=65; use backend='eager'"):
        ops.dense_ssm_state(torch.zeros(2, 10), large, torch.zeros(2, 65), backend="triton")


def test_flops_are_those_of_eager():
    from torch.utils.flop_counter import FlopCounterMode

    def count(backend):
        with FlopCounterMode(display=False) as counter:
            ops.dense_ssm_kernel(*draw_float32(3), 100, backend=backend).sum().backward()
            u = torch.randn(2, 3, 50, requires_grad=True)
            ops.dense_ssm_state(u, *draw_float32(3)[:2], backend=backend).sum().backward()
        return counter.get_total_flops()

    assert count("triton") == count("eager") > 0
