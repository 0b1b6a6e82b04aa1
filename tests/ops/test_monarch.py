"""monarch_mm and block_diagonal_mm against dense matrices written out entry by entry."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.autograd import gradcheck, gradgradcheck

from milkweed import ops

GOLDEN = Path(__file__).parents[1] / "golden" / "monarch_multiply.safetensors"
BACKENDS = ["eager", "reference"]


def dense_monarch(right, left):
    """The matrix by its index formula, one entry at a time."""
    k_total, q_total, p_total = right.shape
    l_total, s_total, _ = left.shape
    W = torch.zeros(l_total * s_total, k_total * p_total, dtype=right.dtype)
    for k in range(k_total):
        for q in range(q_total):
            r, l = divmod(k * q_total + q, l_total)  # noqa: E741
            W[l::l_total, k * p_total : (k + 1) * p_total] += torch.outer(left[l, :, r], right[k, q])
    return W


def draw(k, q, p, l, s, batch=3, dtype=torch.float64):  # noqa: E741
    r = k * q // l
    return (
        torch.randn(batch, k * p, dtype=dtype),
        torch.randn(k, q, p, dtype=dtype),
        torch.randn(l, s, r, dtype=dtype),
    )


@st.composite
def shapes(draw_value):
    l = draw_value(st.integers(1, 6))  # noqa: E741
    k = draw_value(st.integers(1, 6))
    q = l * draw_value(st.integers(1, 3)) if k % l else draw_value(st.integers(l, 2 * l + 1))
    return k, q, draw_value(st.integers(1, 7)), l, draw_value(st.integers(1, 7))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(shape=shapes(), batch=st.integers(0, 5))
def test_equals_the_dense_matrix(backend, shape, batch):
    x, right, left = draw(*shape, batch=batch)
    expected = x @ dense_monarch(right, left).T
    torch.testing.assert_close(ops.monarch_mm(x, right, left, backend=backend), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend):
    stored = load_file(GOLDEN)
    for case in range(4):
        x, right, left, y = (stored[f"{case}.{name}"] for name in ("x", "right", "left", "y"))
        torch.testing.assert_close(ops.monarch_mm(x, right, left, backend=backend), y, rtol=1e-12, atol=1e-12)


def test_gradients_equal_the_dense_matrix():
    x, right, left = (t.requires_grad_() for t in draw(3, 8, 5, 4, 7, batch=9))
    cotangent = torch.randn(9, 28, dtype=torch.float64)
    expected = torch.autograd.grad(x @ dense_monarch(right, left).T, (x, right, left), cotangent)
    found = torch.autograd.grad(ops.monarch_mm(x, right, left), (x, right, left), cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_gradients_of_some_inputs_only(wanted):
    inputs = draw(4, 4, 3, 2, 5)
    active = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    ops.monarch_mm(*active).square().sum().backward()
    dense = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    (dense[0] @ dense_monarch(dense[1], dense[2]).T).square().sum().backward()
    for i in range(3):
        if i in wanted:
            torch.testing.assert_close(active[i].grad, dense[i].grad)
        else:
            assert active[i].grad is None


def test_many_row_blocks_equal_one(monkeypatch):
    from milkweed.ops.monarch import eager

    inputs = [t.requires_grad_() for t in draw(4, 6, 5, 3, 4, batch=201)]
    whole = ops.monarch_mm(*inputs)
    grads = torch.autograd.grad(whole.sin().sum(), inputs)
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)  # blocks of 64 rows, the least; the last one is partial
    parts = ops.monarch_mm(*inputs)
    torch.testing.assert_close(parts, whole)
    for a, b in zip(torch.autograd.grad(parts.sin().sum(), inputs), grads, strict=True):
        torch.testing.assert_close(a, b)


def test_wide_blocks_equal_narrow_ones(monkeypatch):
    from milkweed.ops import _gemm
    from milkweed.ops.monarch import eager

    x, right, left = draw(2, 6, 5, 3, 4, batch=130, dtype=torch.float32)
    exact = [t.double().requires_grad_() for t in (x, right, left)]
    expected = exact[0] @ dense_monarch(exact[1], exact[2]).T
    monkeypatch.setattr(eager, "_WIDE", 1)
    monkeypatch.setattr(_gemm, "_INTEL", False)
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    inputs = [t.requires_grad_() for t in (x, right, left)]
    assert eager._is_wide(*inputs)
    found = ops.monarch_mm(*inputs)
    assert (found - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(ops.monarch_mm(*inputs), found)
    pairs = zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), exact), strict=True)
    for a, b in pairs:
        assert (a - b).norm() < 1e-6 * b.norm()


def test_first_and_second_derivatives():
    inputs = tuple(t.requires_grad_() for t in draw(2, 3, 2, 3, 2, batch=2))
    assert gradcheck(ops.monarch_mm, inputs)
    assert gradgradcheck(ops.monarch_mm, inputs)
    x, weight = torch.randn(2, 6, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    assert gradcheck(ops.block_diagonal_mm, (x.requires_grad_(), weight.requires_grad_()))
    assert gradgradcheck(ops.block_diagonal_mm, (x, weight))


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (2, 0)])
def test_any_leading_shape_and_strides(lead):
    _, right, left = draw(3, 4, 5, 4, 2)
    x = torch.randn(15, *lead, dtype=torch.float64).movedim(0, -1)
    y = ops.monarch_mm(x, right, left)
    assert y.shape == (*lead, 8)
    torch.testing.assert_close(y, x @ dense_monarch(right, left).T)
    torch.testing.assert_close(ops.block_diagonal_mm(x, right), x @ torch.block_diag(*right).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(dtype):
    x, right, left = draw(4, 16, 16, 4, 16, batch=8, dtype=torch.float32)
    right, left = right / 4, left / 4
    exact = x.double() @ dense_monarch(right.double(), left.double()).T
    with torch.autocast("cpu", dtype=dtype):
        mixed = ops.monarch_mm(x.requires_grad_(), right, left)
        assert ops.block_diagonal_mm(x, right).dtype == dtype
    pure = ops.monarch_mm(x.to(dtype), right.to(dtype), left.to(dtype))
    for y in (mixed, pure):
        assert y.dtype == dtype
        # Inputs, middle and output each rounded once: a few units of the dtype's precision.
        assert (y.double() - exact).norm() / exact.norm() < 4 * torch.finfo(dtype).eps
    mixed.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_compiles_and_exports():
    x, right, left = draw(4, 4, 4, 4, 4, batch=6, dtype=torch.float32)
    compiled = torch.compile(ops.monarch_mm, fullgraph=True, backend="aot_eager", dynamic=True)
    active = [t.clone().requires_grad_() for t in (x, right, left)]
    compiled(*active).sum().backward()
    plain = [t.clone().requires_grad_() for t in (x, right, left)]
    ops.monarch_mm(*plain).sum().backward()
    for a, b in zip(active, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_warns_once_where_slices_are_zero():
    from milkweed.ops import _common

    _common._warned.clear()
    x, right, left = torch.randn(2, 6), torch.randn(3, 2, 2), torch.randn(3, 2, 2)
    with pytest.warns(UserWarning, match="q=2 < l=3"):
        ops.monarch_mm(x, right, left)
    ops.monarch_mm(x, right, left)  # a second warning would be an error


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(2, 13)}, ValueError, r"x must end in k \* p = 3 \* 4 = 12 features"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must end in"),
        ({"right": torch.randn(12, 4)}, ValueError, r"right must be \(k, q, p\)"),
        ({"left": torch.randn(4, 2, 5)}, ValueError, r"l \* r = 20, k \* q = 12"),
        ({"x": torch.randn(2, 12).double()}, TypeError, "one dtype"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' is unknown"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"x": torch.randn(2, 12), "right": torch.randn(3, 4, 4), "left": torch.randn(4, 2, 3)} | change
    with pytest.raises(error, match=message):
        ops.monarch_mm(arguments.pop("x"), arguments.pop("right"), arguments.pop("left"), **arguments)


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    x, right, left = (t.requires_grad_() for t in draw(4, 8, 6, 4, 5, batch=3))
    products = right.numel() + left.numel()
    with FlopCounterMode(display=False) as forward:
        y = ops.monarch_mm(x, right, left)
    assert forward.get_total_flops() == 2 * 3 * products
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * 3 * 2 * products
    weight = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as both:
        ops.block_diagonal_mm(torch.randn(5, 6, dtype=torch.float64), weight).sum().backward()
    assert both.get_total_flops() == 2 * 5 * weight.numel() * 2
