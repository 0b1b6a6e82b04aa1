"""diagonal_ssm_kernel and diagonal_ssm_state against complex128 sums."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from milkweed import ops

BACKENDS = ["eager", "reference"]
LENGTHS = [1, 2, 63, 997, 1000, 4096]


def draw(*lead, modes=8, dt=0.01, dtype=torch.float64):
    """Modes as S4D has them: real part -1/2, imaginary parts up to π N."""
    imag = math.pi * torch.rand(*lead, modes, dtype=torch.float64) * modes
    dt_a = dt * torch.stack([torch.full_like(imag, -0.5), imag], -1)
    return torch.randn(*lead, modes, 2, dtype=torch.float64).to(dtype), dt_a.to(dtype)


def kernel(c, dt_a, length):
    c, z = torch.view_as_complex(c.double()), torch.view_as_complex(dt_a.double())
    return 2 * (c[..., None] * torch.exp(z[..., None] * torch.arange(length))).sum(-2).real


def state(u, dt_a):
    """The recurrence itself."""
    z = torch.view_as_complex(dt_a.double()).exp()
    x = torch.zeros(*u.shape[:-1], z.shape[-1], dtype=torch.complex128)
    for t in range(u.shape[-1]):
        x = z * x + u[..., t, None]
    return torch.view_as_real(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_kernel(length, backend):
    c, dt_a = draw(3)
    found = ops.diagonal_ssm_kernel(c, dt_a, length, backend=backend)
    torch.testing.assert_close(found, kernel(c, dt_a, length), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 63, 1000])
def test_state(length, backend):
    _, dt_a = draw(3)
    u = torch.randn(2, 3, length, dtype=torch.float64)
    torch.testing.assert_close(ops.diagonal_ssm_state(u, dt_a, backend=backend), state(u, dt_a), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dt", [1e-4, 1e-2, 1e-1])
def test_float32_error_at_16k(dt):
    c, dt_a = draw(4, modes=32, dt=dt, dtype=torch.float32)
    exact = kernel(c, dt_a, 16384)
    assert (ops.diagonal_ssm_kernel(c, dt_a, 16384).double() - exact).norm() / exact.norm() < 1e-6


def test_phases_beyond_float32():
    # 0.9999 rad a step for 100,000 steps: in float32 the angle alone would be off by 4e-3.
    c, dt_a = torch.ones(1, 1, 2), torch.tensor([[[-1e-6, 0.9999]]])
    exact = kernel(c, dt_a, 100_000)
    assert (ops.diagonal_ssm_kernel(c, dt_a, 100_000).double() - exact).abs().max() < 2e-6


@pytest.mark.parametrize("length", [1, 63, 1000])
def test_gradients(length):
    c, dt_a = (t.requires_grad_() for t in draw(3))
    cotangent = torch.randn(3, length, dtype=torch.float64)
    expected = torch.autograd.grad(kernel(c, dt_a, length), (c, dt_a), cotangent)
    found = torch.autograd.grad(ops.diagonal_ssm_kernel(c, dt_a, length), (c, dt_a), cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_state_gradients():
    _, dt_a = draw(3)
    u = torch.randn(2, 3, 40, dtype=torch.float64, requires_grad=True)
    dt_a.requires_grad_()
    cotangent = torch.randn(2, 3, 8, 2, dtype=torch.float64)
    expected = torch.autograd.grad(state(u, dt_a), (u, dt_a), cotangent)
    found = torch.autograd.grad(ops.diagonal_ssm_state(u, dt_a), (u, dt_a), cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_first_and_second_derivatives():
    c, dt_a = (t.requires_grad_() for t in draw(2, modes=2, dt=0.1))
    u = torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    for function, inputs in (
        (lambda c, z: ops.diagonal_ssm_kernel(c, z, 7), (c, dt_a)),
        (ops.diagonal_ssm_state, (u, dt_a)),
    ):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


def test_leading_dimensions_broadcast():
    c, dt_a = torch.randn(5, 2, 3, 4, 2, dtype=torch.float64), draw(3, modes=4)[1]
    torch.testing.assert_close(ops.diagonal_ssm_kernel(c, dt_a, 20), kernel(c, dt_a, 20))
    c, dt_a = torch.randn(3, 4, 2, dtype=torch.float64), draw(5, 1, modes=4)[1]
    torch.testing.assert_close(ops.diagonal_ssm_kernel(c, dt_a, 20), kernel(c, dt_a, 20))
    c, dt_a = draw(modes=4)
    torch.testing.assert_close(ops.diagonal_ssm_kernel(c, dt_a, 20), kernel(c, dt_a, 20))
    empty = ops.diagonal_ssm_kernel(torch.randn(0, 3, 4, 2), torch.randn(3, 4, 2), 5)
    assert empty.shape == (0, 3, 5)


def test_complex_input_and_strides():
    c, dt_a = draw(3)
    found = ops.diagonal_ssm_kernel(torch.view_as_complex(c), torch.view_as_complex(dt_a), 50)
    torch.testing.assert_close(found, kernel(c, dt_a, 50))
    flipped = c.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(ops.diagonal_ssm_kernel(flipped, dt_a, 50), kernel(c, dt_a, 50))


def test_blocks_change_nothing(monkeypatch):
    from milkweed.ops.ssm_kernel import eager

    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)
    c, dt_a = (t.requires_grad_() for t in draw(5))
    found = ops.diagonal_ssm_kernel(c, dt_a, 77)
    torch.testing.assert_close(found, kernel(c, dt_a, 77))
    expected = torch.autograd.grad(kernel(c, dt_a, 77).sin().sum(), (c, dt_a))
    for a, b in zip(torch.autograd.grad(found.sin().sum(), (c, dt_a)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_is_computed_in_float32():
    c, dt_a = draw(3, dtype=torch.float32)
    y = ops.diagonal_ssm_kernel(c.bfloat16(), dt_a, 100)
    exact = kernel(c.bfloat16(), dt_a, 100)
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).norm() / exact.norm() < torch.finfo(torch.bfloat16).eps


def test_compiles_with_changing_length():
    compiled = torch.compile(ops.diagonal_ssm_kernel, fullgraph=True, backend="aot_eager", dynamic=True)
    c, dt_a = (t.requires_grad_() for t in draw(3))
    for length in (10, 33, 100):
        found = torch.autograd.grad(compiled(c, dt_a, length).sum(), (c, dt_a))
        expected = torch.autograd.grad(kernel(c, dt_a, length).sum(), (c, dt_a))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("c", "dt_a", "length", "message"),
    [
        (torch.randn(3, 4, 2), torch.randn(3, 5, 2), 8, "one number of modes N; got 4 and 5"),
        (torch.randn(3, 4), torch.randn(3, 4, 2), 8, r"c must be real pairs \(..., N, 2\)"),
        (torch.randn(3, 4, 2), torch.zeros(3, 4, 2, dtype=torch.long), 8, "dt_a must be real pairs"),
        (torch.randn(3, 4, 2), torch.randn(3, 4, 2), 0, "length must be an integer of at least 1; got 0"),
    ],
)
def test_bad_input(c, dt_a, length, message):
    with pytest.raises(ValueError, match=message):
        ops.diagonal_ssm_kernel(c, dt_a, length)


def test_bad_state_input():
    with pytest.raises(ValueError, match=r"u must be \(..., H, L\)"):
        ops.diagonal_ssm_state(torch.randn(2, 4, 8), torch.randn(3, 5, 2))
    with pytest.raises(TypeError, match="u must be real floating point"):
        ops.diagonal_ssm_state(torch.zeros(2, 3, 8, dtype=torch.long), torch.randn(3, 5, 2))


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    c, dt_a = (t.requires_grad_() for t in draw(3))
    with FlopCounterMode(display=False) as counter:
        ops.diagonal_ssm_kernel(c, dt_a, 100).sum().backward()
    assert counter.get_total_flops() == 3 * (4 * 3 * 8 * 100)
    u = torch.randn(2, 3, 100, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        ops.diagonal_ssm_state(u, dt_a).sum().backward()
    assert counter.get_total_flops() == 4 * (4 * 2 * 3 * 8 * 100)
    with FlopCounterMode(display=False) as counter:
        ops.fft_conv(u, torch.randn(3, 100, dtype=torch.float64)).sum().backward()
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_autocast_does_not_reach_inside(backend):
    c, dt_a, u = torch.randn(3, 4, 2), -torch.rand(3, 4, 2), torch.randn(2, 3, 50)
    leaves = [t.requires_grad_() for t in (c, dt_a, u)]

    def forward():
        return ops.diagonal_ssm_kernel(c, dt_a, 50, backend=backend), ops.diagonal_ssm_state(u, dt_a, backend=backend)

    def gradients(kernel, state):
        return torch.autograd.grad(kernel.sum() + state.square().sum(), leaves)

    expected = forward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = forward()
        # The plain formula's backward pass is torch's own, which is to be called outside.
        grads = gradients(*forward()) if backend == "eager" else None
    torch.testing.assert_close((*found, *(grads or gradients(*found))), (*expected, *gradients(*expected)))
