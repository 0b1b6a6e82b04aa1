"""The Triton backend of diagonal_ssm_kernel and diagonal_ssm_state, interpreted, against complex128 sums."""

import math

import pytest
import torch
from tests.ops.test_ssm_kernel import draw, kernel, state

from milkweed import ops, ssm

pytest.importorskip("triton")

LENGTHS = [1, 2, 63, 997, 1000, 4097]


def relative(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def draw_float32(*lead, **options):
    return draw(*lead, **options, dtype=torch.float32)


def gradients(function, inputs, cotangent):
    return torch.autograd.grad(function(*inputs), inputs, cotangent)


def in_float64(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


@pytest.mark.sampled
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("modes", [1, 8, 37])
def test_kernel_and_gradients(length, modes):
    inputs = [t.requires_grad_() for t in draw_float32(3, modes=modes)]
    cotangent = torch.randn(3, length)
    found = ops.diagonal_ssm_kernel(*inputs, length, backend="triton")
    exact = kernel(*in_float64(inputs), length)
    assert relative(found, exact) < 1e-6
    expected = gradients(lambda c, z: kernel(c, z, length), in_float64(inputs), cotangent.double())
    for x, y in zip(torch.autograd.grad(found, inputs, cotangent), expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5 * y.abs().max().item())


@pytest.mark.parametrize("length", [1, 2, 63, 1000])
def test_state_and_gradients(length):
    _, dt_a = draw_float32(3)
    u = torch.randn(2, 3, length)
    inputs = [t.requires_grad_() for t in (u, dt_a)]
    cotangent = torch.randn(2, 3, 8, 2)
    found = ops.diagonal_ssm_state(*inputs, backend="triton")
    exact_inputs = in_float64(inputs)
    exact = state(*exact_inputs)
    assert relative(found, exact) < 1e-6
    expected = torch.autograd.grad(exact, exact_inputs, cotangent.double(), allow_unused=True, materialize_grads=True)
    for x, y in zip(torch.autograd.grad(found, inputs, cotangent), expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5 * max(y.abs().max().item(), 1e-3))


@pytest.mark.parametrize("dt", [1e-4, 1e-2, 1e-1])
def test_error_at_16k(dt):
    c, dt_a = draw_float32(2, modes=32, dt=dt)
    assert relative(ops.diagonal_ssm_kernel(c, dt_a, 16384, backend="triton"), kernel(c, dt_a, 16384)) < 1e-6


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ssm.DIAGONAL_INITS)
def test_initialisations_of_layers_at_16k(name):
    dt = torch.tensor([1e-4, 1e-1], dtype=torch.float64)
    dt_a = torch.view_as_real(ssm.diagonal(name, 64).to(torch.complex128) * dt[:, None]).float()
    c = torch.randn(dt_a.shape)
    found, exact = ops.diagonal_ssm_kernel(c, dt_a, 16384, backend="triton"), kernel(c, dt_a, 16384)
    assert ((found - exact).abs().amax(-1) / exact.abs().amax(-1) < 1e-5).all()


def test_phases_beyond_float32():
    # 0.9999 rad a step for 100,000 steps: in float32 the angle alone would be off by 4e-3. Turns add up backwards too.
    c = torch.ones(1, 1, 2)
    for angle in (0.9999, -0.9999, 1e4, math.pi):
        dt_a = torch.tensor([[[-1e-6, angle]]])
        found = ops.diagonal_ssm_kernel(c, dt_a, 100_000, backend="triton")
        assert (found.double() - kernel(c, dt_a, 100_000)).abs().max() < 4e-6


def test_modes_that_grow():
    # Their exponentials overflow before a tile ends; what lies beyond the last lag must not reach the result.
    c, dt_a = torch.ones(1, 1, 2), torch.tensor([[[8.0, 0.1]]], requires_grad=True)
    assert relative(ops.diagonal_ssm_kernel(c, dt_a, 5, backend="triton"), kernel(c, dt_a, 5)) < 1e-6
    exact = dt_a.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(kernel(c, exact, 5).sum(), exact)
    (found,) = torch.autograd.grad(ops.diagonal_ssm_kernel(c, dt_a, 5, backend="triton").sum(), dt_a)
    assert relative(found, expected) < 1e-5


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_a_number_stays_so():
    c, dt_a = draw_float32(2)
    dt_a[0, 1, 1] = math.nan
    found = ops.diagonal_ssm_kernel(c, dt_a, 70, backend="triton")
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    c, dt_a = draw_float32(3)
    half, u = c.to(dtype).requires_grad_(), torch.randn(2, 3, 100).to(dtype)
    y = ops.diagonal_ssm_kernel(half, dt_a, 100, backend="triton")
    assert y.dtype == dtype
    assert relative(y, kernel(half, dt_a, 100)) < torch.finfo(dtype).eps
    (grad,) = torch.autograd.grad(y, half, torch.ones_like(y))
    wide = half.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(kernel(wide, dt_a, 100).sum(), wide)
    assert relative(grad, expected) < torch.finfo(dtype).eps
    x = ops.diagonal_ssm_state(u, dt_a, backend="triton")
    assert x.dtype == torch.float32
    assert relative(x, state(u, dt_a)) < 1e-6


def test_autocast_does_not_reach_inside():
    inputs = [t.requires_grad_() for t in draw_float32(3)]

    def run():
        y = ops.diagonal_ssm_kernel(*inputs, 100, backend="triton")
        return y, *torch.autograd.grad(y.sum(), inputs)

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_leading_dimensions_and_strides():
    c = torch.randn(2, 5, 3, 4, 2).transpose(0, 1)
    dt_a = draw_float32(3, modes=4)[1].transpose(0, 1).contiguous().transpose(0, 1)
    assert relative(ops.diagonal_ssm_kernel(c, dt_a, 70, backend="triton"), kernel(c, dt_a, 70)) < 1e-6
    u = torch.randn(2, 50, 3).transpose(1, 2)
    assert relative(ops.diagonal_ssm_state(u, dt_a, backend="triton"), state(u, dt_a)) < 1e-6


def test_empty_batch():
    c, dt_a = torch.randn(0, 3, 4, 2, requires_grad=True), draw_float32(3, modes=4)[1].requires_grad_()
    y = ops.diagonal_ssm_kernel(c, dt_a, 5, backend="triton")
    assert y.shape == (0, 3, 5)
    for grad, like in zip(torch.autograd.grad(y.sum(), (c, dt_a)), (c, dt_a), strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(like))
    assert ops.diagonal_ssm_state(torch.randn(0, 3, 5), dt_a, backend="triton").shape == (0, 3, 4, 2)


def test_second_derivatives():
    inputs = [t.requires_grad_() for t in draw_float32(2, modes=2, dt=0.1)]

    def twice(function, inputs):
        grads = torch.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    expected = twice(lambda c, z: kernel(c, z, 7), in_float64(inputs))
    for x, y in zip(
        twice(lambda c, z: ops.diagonal_ssm_kernel(c, z, 7, backend="triton"), inputs), expected, strict=True
    ):
        assert relative(x, y) < 1e-4


def test_compiles_with_changing_length():
    def function(c, dt_a, u, length):
        return (
            ops.diagonal_ssm_kernel(c, dt_a, length, backend="triton").sum()
            + ops.diagonal_ssm_state(u, dt_a, backend="triton").sum()
        )

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    c, dt_a = (t.requires_grad_() for t in draw_float32(3))
    for length in (10, 33, 100):
        u = torch.randn(2, 3, length, requires_grad=True)
        found = torch.autograd.grad(compiled(c, dt_a, u, length), (c, dt_a, u))
        expected = torch.autograd.grad(function(c, dt_a, u, length), (c, dt_a, u))
        torch.testing.assert_close(found, expected)


def test_custom_ops_are_consistent():
    from milkweed.ops.ssm_kernel import triton

    c, dt_a = (t.requires_grad_() for t in draw_float32(3))
    u = torch.randn(2, 3, 20, requires_grad=True)
    # Not test_aot_dispatch_dynamic, which draws float32 derivatives too closely; the test above compiles.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.diagonal_ssm_kernel, (c[None], dt_a, 20), test_utils=checks)
    torch.library.opcheck(triton.diagonal_ssm_state, (u, dt_a), test_utils=checks)


def test_choice():
    c, dt_a = draw_float32(2)
    assert ops.available_backends("diagonal_ssm_kernel") == ("triton", "eager", "reference", "export", "float64")
    assert ops.explain("diagonal_ssm_kernel", c[None], dt_a, 10).backend == "eager"
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, got torch.float64"):
        ops.diagonal_ssm_kernel(c.double(), dt_a, 10, backend="triton")


def test_flops_are_those_of_eager():
    from torch.utils.flop_counter import FlopCounterMode

    c, dt_a = (t.requires_grad_() for t in draw_float32(3))
    with FlopCounterMode(display=False) as counter:
        ops.diagonal_ssm_kernel(c, dt_a, 100, backend="triton").sum().backward()
    assert counter.get_total_flops() == 3 * (4 * 3 * 8 * 100)
