"""The contract of structured linear layers: an nn.Linear whose weight is known."""

import copy
import io
import pickle

import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F


def check_equals_dense(layer, weight):
    """Same outputs and gradients as F.linear, on any leading shape and strides. ``weight`` comes from elsewhere."""
    for lead in [(), (1,), (5,), (2, 3), (0,)]:
        x = torch.randn(*lead, layer.in_features, dtype=weight.dtype)
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias), rtol=1e-10, atol=1e-10)
    strided = torch.randn(layer.in_features, 4, dtype=weight.dtype).T.requires_grad_()
    cotangent = torch.randn(4, layer.out_features, dtype=weight.dtype)
    found = torch.autograd.grad(layer(strided), strided, cotangent)[0]
    torch.testing.assert_close(found, cotangent @ weight, rtol=1e-10, atol=1e-10)


def check_to_linear(layer, weight):
    layer.eval()
    linear = layer.to_linear()
    assert type(linear) is nn.Linear
    assert not linear.training
    torch.testing.assert_close(linear.weight.detach(), weight, rtol=1e-10, atol=1e-10)
    x = torch.randn(3, layer.in_features, dtype=weight.dtype)
    torch.testing.assert_close(linear(x), layer(x), rtol=1e-10, atol=1e-10)


def check_gradients(layer):
    x = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(function, (x, *values))


def check_compiles_and_exports(layer):
    x = torch.randn(6, layer.in_features)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    other = torch.randn(9, layer.in_features)
    torch.testing.assert_close(exported(other), layer(other))


def check_autocast(layer):
    x = torch.randn(4, layer.in_features)
    exact = layer(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            y = layer(x)
        assert y.dtype == dtype
        y.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
        assert (y.float() - exact).norm() / exact.norm() < 8 * torch.finfo(dtype).eps


def check_copies(layer):
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(layer)
    fresh.reset_parameters()
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for copied in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), expected)


def check_meta(build):
    """A layer built on the meta device takes no memory and comes alive with to_empty and reset_parameters."""
    layer = build(device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert layer(torch.empty(2, layer.in_features, device="meta")).shape == (2, layer.out_features)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(2, layer.in_features)).isfinite().all()
