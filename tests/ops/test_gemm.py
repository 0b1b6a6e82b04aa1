"""The dense product by oneDNN against float64, whatever machine prefers it."""

import pytest
import torch
from torch.nn import functional as F

from milkweed.ops import _gemm

onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


def draw(rows=33, inputs=17, outputs=29, bias=True):
    torch.manual_seed(0)
    shapes = [(rows, inputs), (outputs, inputs), *([(outputs,)] if bias else [])]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 33, 257])
def test_values_and_gradients(rows, bias):
    tensors = draw(rows, bias=bias)
    y = _gemm._linear(*tensors, *([] if bias else [None]))
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = F.linear(*wide)
    cotangent = torch.randn(expected.shape)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(y, tensors, cotangent)
    for a, b in zip(found, torch.autograd.grad(expected, wide, cotangent.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)


@onednn
def test_gradients_of_some_inputs_only():
    for wanted in range(3):
        tensors = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(draw())]
        _gemm._linear(*tensors).square().sum().backward()
        expected = [t.detach().double().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        F.linear(*expected).square().sum().backward()
        torch.testing.assert_close(tensors[wanted].grad.double(), expected[wanted].grad, rtol=1e-4, atol=1e-4)
        assert all(t.grad is None for i, t in enumerate(tensors) if i != wanted)


@onednn
def test_it_can_be_derived_twice():
    tensors = draw(3, 2, 4)
    wide = [t.detach().double().requires_grad_() for t in tensors]

    def second(linear, inputs):
        first = torch.autograd.grad(linear(*inputs).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    for a, b in zip(second(_gemm._linear, tensors), second(F.linear, wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


@onednn
@pytest.mark.parametrize("strided", [False, True])
def test_strided_operands(strided):
    x, weight = torch.randn(40, 64), torch.randn(24, 32)
    part = x[:, ::2] if strided else x[:, :32]
    torch.testing.assert_close(_gemm.linear(part, weight), part @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(512, 64), (2, 300, 64), (64,), (0, 64)])
def test_dense_linear_is_linear(shape, monkeypatch):
    monkeypatch.setattr(_gemm, "_LEAST_WORK", 1)
    x, weight, bias = torch.randn(shape), torch.randn(128, 64), torch.randn(128)
    found = _gemm.dense_linear(x, weight, bias)
    torch.testing.assert_close(
        found.double(), F.linear(x.double(), weight.double(), bias.double()), rtol=1e-5, atol=1e-4
    )


def test_other_kinds_of_numbers_and_autocast(monkeypatch):
    monkeypatch.setattr(_gemm, "_LEAST_WORK", 1)
    x, weight = torch.randn(8, 16), torch.randn(4, 16)
    for dtype in (torch.float64, torch.bfloat16):
        assert _gemm.dense_linear(x.to(dtype), weight.to(dtype), None).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert _gemm.dense_linear(x, weight, None).dtype == torch.bfloat16
    compiled = torch.compile(_gemm.dense_linear, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, None), x @ weight.T)
