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


def check_functional_transforms(layer, other):
    """torch.func over inputs and over an ensemble of two layers, and derivatives of derivatives."""
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    stacked = {n: torch.stack([layer.get_parameter(n), other.get_parameter(n)]).detach() for n in names}

    def function(values, x):
        return torch.func.functional_call(layer, values, (x,))

    expected = torch.stack([layer(x), other(x)])
    torch.testing.assert_close(torch.func.vmap(function, (0, None))(stacked, x), expected)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    value, tangent = torch.func.jvp(lambda x: layer(x).sin(), (x,), (x,))
    no_bias = layer(x) - layer(torch.zeros_like(x))
    torch.testing.assert_close(value, layer(x).sin())
    torch.testing.assert_close(tangent, layer(x).cos() * no_bias)
    grads = torch.func.grad(lambda v: function(v, x).square().sum())({n: stacked[n][0] for n in names})
    layer(x).square().sum().backward()
    for name in names:
        torch.testing.assert_close(grads[name], layer.get_parameter(name).grad)
    parameters = list(layer.parameters())
    first = torch.autograd.grad(layer(x).square().sum(), parameters, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
    assert all(g.isfinite().all() and g.norm() > 0 for g in second)


def check_from_linear(cls, sizes, options, *, exact):
    """A dense layer of this structure is taken over exactly where an optimum is known, any other as near as it goes."""
    member = cls(*sizes, **options, dtype=torch.float64).to_linear().eval()
    member.weight.requires_grad_(False)
    before = torch.get_rng_state()
    layer = cls.from_linear(member, **options)
    assert torch.equal(torch.get_rng_state(), before)
    tolerance = 1e-8 if exact else 0.3
    assert (layer.matrix().to_dense() - member.weight).norm() < tolerance * member.weight.norm()
    assert not layer.training
    assert not any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")
    assert layer.bias.requires_grad
    for bias, dtype in [(True, torch.float32), (False, torch.bfloat16)]:
        dense = nn.Linear(*sizes, bias=bias, dtype=dtype)
        layer = cls.from_linear(dense, **options)
        assert (layer.in_features, layer.out_features, layer.training) == (*sizes, True)
        assert all(p.dtype == dtype for p in layer.parameters())
        assert (layer.bias is not None) == bias
        if bias:
            torch.testing.assert_close(layer.bias, dense.bias)
        assert (layer.matrix().to_dense() - dense.weight).norm() < dense.weight.norm()
