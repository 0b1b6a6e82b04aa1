"""Which backend runs, and how that is asked and told."""

import pytest
import torch
from torch.autograd import forward_ad

from milkweed import ops
from milkweed.ops import backends


def test_order_argument_and_context():
    u, kernel = torch.randn(1, 2, 8), torch.randn(2, 8)
    assert ops.available_backends("fft_conv") == ("triton", "eager", "reference", "float64")
    assert ops.explain("fft_conv", u, kernel).backend == "eager"
    with ops.use_backend("reference"):
        assert ops.explain("fft_conv", u, kernel).backend == "reference"
        assert ops.explain("fft_conv", u, kernel, backend="eager").backend == "eager"
        with ops.use_backend(None):
            assert ops.explain("fft_conv", u, kernel).backend == "eager"
    assert ops.explain("fft_conv", u, kernel).backend == "eager"


def test_context_ends_with_an_error():
    with pytest.raises(RuntimeError, match="inside"), ops.use_backend("reference"):
        raise RuntimeError("inside")
    assert ops.explain("monarch_mm").backend == "eager"


def test_the_context_decides_what_runs(monkeypatch):
    ran = []
    spies = tuple(
        backends.Backend(b.name, lambda *a, b=b, **k: (ran.append(b.name), b.run(*a, **k))[1], b.refusal, b.passed_over)
        for b in backends._operations["fft_conv"]
    )
    monkeypatch.setitem(backends._operations, "fft_conv", spies)
    u, kernel = torch.randn(1, 2, 8), torch.randn(2, 8)
    ops.fft_conv(u, kernel)
    with ops.use_backend("reference"):
        ops.fft_conv(u, kernel)
        ops.fft_conv(u, kernel, backend="eager")
    assert ran == ["eager", "reference", "eager"]


def test_refusals(monkeypatch):
    picky = backends.Backend("picky", lambda x: x, lambda x: "needs a GPU; move x with .cuda()")
    plain = backends.Backend("plain", lambda x: x + 1)
    monkeypatch.setitem(backends._operations, "toy", (picky, plain))
    choice = ops.explain("toy", 1)
    assert choice.backend == "plain"
    assert "not picky: needs a GPU" in str(choice)
    assert backends.dispatch("toy", None, 1) == 2
    with pytest.raises(ValueError, match=r"backend='picky' cannot run toy: needs a GPU; move x with .cuda\(\)"):
        backends.dispatch("toy", "picky", 1)
    monkeypatch.setitem(backends._operations, "toy", (picky,))
    with pytest.raises(ValueError, match="no backend can run toy: picky: needs a GPU"):
        backends.dispatch("toy", None, 1)


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'fft_conv'"):
        ops.explain("fft_con")
    with pytest.raises(ValueError, match="did you mean 'reference'"), ops.use_backend("refernce"):
        pass


def test_compile_follows_the_context():
    compiled = torch.compile(lambda u, k: ops.fft_conv(u, k), fullgraph=True, backend="aot_eager")
    u, kernel = torch.randn(2, 3, 16), torch.randn(3, 16)
    eager = compiled(u, kernel)
    with ops.use_backend("reference"):
        torch.testing.assert_close(compiled(u, kernel), eager)


def test_forward_mode_takes_the_way_that_knows_it():
    u, kernel = torch.randn(2, 3, 8), torch.randn(3, 8)
    c, dt_a = torch.randn(3, 4, 2), -torch.rand(3, 4, 2)
    x, right, left = torch.randn(2, 12), torch.randn(3, 4, 4), torch.randn(4, 2, 3)
    # All are linear in their first argument, so the tangent of x along x is f(x).
    for function, first in (
        (lambda u: ops.fft_conv(u, kernel), u),
        (lambda c: ops.diagonal_ssm_kernel(c, dt_a, 9), c),
        (lambda u: ops.diagonal_ssm_state(u, dt_a), u),
        (lambda x: ops.monarch_mm(x, right, left), x),
        (lambda x: ops.block_diagonal_mm(x, right), x),
    ):
        value, tangent = torch.func.jvp(function, (first,), (first,))
        torch.testing.assert_close(tangent, value)
        torch.testing.assert_close(value, function(first))
    with pytest.raises(ValueError, match=r"torch\.func transforms cannot look inside it"):
        torch.func.jvp(lambda u: ops.fft_conv(u, kernel, backend="eager"), (u,), (u,))
    with pytest.raises(ValueError, match="no forward-mode derivative"), forward_ad.dual_level():
        ops.fft_conv(forward_ad.make_dual(u, u), kernel, backend="eager")


def test_exported_without_gradients_then_trained():
    from milkweed.nn import MonarchLinear

    layer = MonarchLinear(16, 16)
    x = torch.randn(5, 16)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,)).module()
    exported(x).sum().backward()
    layer(x).sum().backward()
    torch.testing.assert_close(exported.left.grad, layer.left.grad)


def test_no_integers():
    with pytest.raises(TypeError, match="x must be floating point or complex; got"):
        ops.monarch_mm(torch.ones(2, 12, dtype=torch.int64), torch.randn(3, 4, 4), torch.randn(4, 2, 3))
    with pytest.raises(TypeError, match="weight must be floating point or complex"):
        ops.block_diagonal_mm(torch.ones(2, 12), torch.ones(3, 4, 4, dtype=torch.bool))


def test_complex_numbers_take_the_plain_formula():
    x, weight = torch.randn(2, 12, dtype=torch.complex128), torch.randn(3, 5, 4, dtype=torch.complex128)
    expected = x @ torch.block_diag(*weight).mT
    torch.testing.assert_close(ops.block_diagonal_mm(x, weight), expected)
    with pytest.raises(ValueError, match="it is for real numbers"):
        ops.block_diagonal_mm(x, weight, backend="eager")


def test_empty_factors():
    with pytest.raises(ValueError, match="weight must have no dimension of size 0"):
        ops.block_diagonal_mm(torch.ones(2, 0), torch.ones(3, 4, 0))


def test_tensors_on_several_devices_are_refused():
    x, weight = torch.randn(2, 6), torch.randn(3, 2, 2, device="meta")
    with pytest.raises(
        ValueError, match=r"all tensors of block_diagonal_mm must be on one device; got \['cpu', 'meta'\]"
    ):
        ops.block_diagonal_mm(x, weight)
