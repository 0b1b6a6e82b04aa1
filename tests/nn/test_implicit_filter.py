"""The implicit filter against its formula, lag by lag, in float64."""

import copy
import math

import pytest
import torch
from tests.nn.test_parameter_groups import names

from milkweed.nn import ExplicitFilter, ImplicitFilter, parameter_groups


def literal(layer, length, layers):
    """Kernel entry by kernel entry from the definition, with features, envelope and all from the formula."""
    bands = (layer.positions.shape[1] - 1) // 2
    bottom, step = 1e-4, (bands - 1 - 1e-4) / max(bands - 1, 1)
    f = layer.frequency.detach().double()
    slow, fast = math.log(0.01) / 1.5, math.log(0.01) / 0.3
    kernel = torch.empty(layer.d_model, length, dtype=torch.float64)
    for n in range(length):
        t, w = n / max(layer.l_max - 1, 1), 2 * math.pi * n / layer.l_max
        bases = [bottom + i * step for i in range(bands)]
        x = torch.tensor(
            [t, *[math.cos(b * w) for b in bases], *[-math.sin(b * w) for b in bases]], dtype=torch.float64
        )
        for linear in layers[:3]:
            x = torch.sin(f * (linear.weight.detach().double() @ x + linear.bias.detach().double()))
        x = layers[3].weight.detach().double() @ x
        for d in range(layer.d_model):
            delta = slow + (fast - slow) * d / max(layer.d_model - 1, 1)
            kernel[d, n] = x[d] * math.exp(-t * abs(delta))
    return kernel


@pytest.mark.parametrize(("l_max", "length"), [(1, 1), (63, 63), (63, 20), (1000, 1000), (997, 500)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_formula(l_max, length, bidirectional):
    layer = ImplicitFilter(5, l_max, bidirectional=bidirectional, width=16, dtype=torch.float64)
    with torch.no_grad():
        layer.frequency.uniform_(1, 10)
    kernel, reverse = layer(length)
    torch.testing.assert_close(kernel, literal(layer, length, layer.layers), rtol=1e-11, atol=1e-11)
    if bidirectional:
        torch.testing.assert_close(reverse, literal(layer, length, layer.reverse_layers), rtol=1e-11, atol=1e-11)
        assert not torch.equal(kernel, reverse)
    else:
        assert reverse is None


@pytest.mark.parametrize("emb_dim", [3, 7])
def test_other_numbers_of_features(emb_dim):
    layer = ImplicitFilter(3, 40, emb_dim=emb_dim, width=8, dtype=torch.float64)
    torch.testing.assert_close(layer()[0], literal(layer, 40, layer.layers), rtol=1e-11, atol=1e-11)


def test_float32_at_full_size():
    layer = ImplicitFilter(8, 8192)
    kernel = layer()[0]
    rows = literal(layer, 300, layer.layers)
    assert (kernel[:, :300].double() - rows).abs().max() < 3e-5 * rows.abs().max()
    exact = copy.deepcopy(layer).double()()[0]
    assert (kernel.double() - exact).abs().max() < 3e-5 * exact.abs().max()


def test_a_shorter_kernel_is_the_first_part():
    layer = ImplicitFilter(4, 500, bidirectional=True, dtype=torch.float64)
    for short, whole in zip(layer(77), layer(), strict=True):
        torch.testing.assert_close(short, whole[:, :77])


def test_parameters():
    # Features, frequencies once, and two networks 5 -> 128 -> 128 -> 128 -> 768.
    layer = ImplicitFilter(768, 128, bidirectional=True)
    network = 5 * 128 + 128 + 2 * (128 * 128 + 128) + 128 * 768
    assert sum(p.numel() for p in layer.parameters()) == 128 * 5 + 128 + 2 * network
    assert not list(layer.buffers())
    assert (layer.frequency == 10).all()


def test_every_parameter_learns():
    layer = ImplicitFilter(6, 50, bidirectional=True, width=16)
    kernel, reverse = layer()
    (kernel.square().sum() + reverse.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_gradients_equal_those_of_the_formula():
    layer = ImplicitFilter(3, 30, width=8, dtype=torch.float64)
    cotangent = torch.randn(3, 30, dtype=torch.float64)
    layer()[0].backward(cotangent)
    step = 1e-6
    for parameter in (layer.frequency, layer.layers[0].weight, layer.layers[2].bias, layer.layers[3].weight):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = literal(layer, 30, layer.layers)
            parameter.sub_(direction, alpha=2 * step)
            below = literal(layer, 30, layer.layers)
            parameter.add_(direction, alpha=step)
        slope = ((above - below) * cotangent).sum() / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_touch_the_kernel():
    layer = ImplicitFilter(6, 50, width=16)
    expected = layer()[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer()[0], expected)
    half = copy.deepcopy(layer).bfloat16()
    assert half()[0].dtype == torch.float32


@pytest.mark.parametrize("build", [ImplicitFilter, ExplicitFilter])
def test_meta(build):
    layer = build(4, 20, bidirectional=True, device="meta")
    assert all(kernel.is_meta and kernel.shape == (4, 20) for kernel in layer())
    layer.to_empty(device="cpu").reset_parameters()
    assert all(kernel.isfinite().all() for kernel in layer())


@pytest.mark.parametrize("build", [ImplicitFilter, ExplicitFilter])
def test_compiles(build):
    layer = build(4, 20, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(13), layer(13))


class TestLearning:
    def test_uniform(self):
        layer = ImplicitFilter(4, 20)
        groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in parameter_groups(layer, lr=0.01, weight_decay=0.2)}
        assert groups == {"decay": (0.01, 0.2), "no_decay": (0.01, 0.0)}
        assert "positions" in names(layer, parameter_groups(layer, lr=0.01))["no_decay"]

    def test_special(self):
        layer = copy.deepcopy(ImplicitFilter(4, 20, bidirectional=True, filters="special"))
        groups = parameter_groups(torch.nn.Sequential(layer, torch.nn.Linear(4, 4)), lr=0.01, weight_decay=0.2)
        settings = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}
        assert settings == {
            "decay": (0.01, 0.2),
            "no_decay": (0.01, 0.0),
            "lr 0.001 decay 0.1": (1e-3, 0.1),
            "lr 0.001 decay 0": (1e-3, 0.0),
            "lr 1e-05 decay 0": (1e-5, 0.0),
        }
        found = names(layer, parameter_groups(layer, lr=0.01))
        assert found["lr 1e-05 decay 0"] == {"positions"}
        assert all(name.endswith("weight") for name in found["lr 0.001 decay 0.1"])
        assert len(found["lr 0.001 decay 0.1"]) == 8
        assert "frequency" in found["lr 0.001 decay 0"]

    def test_explicit(self):
        groups = parameter_groups(ExplicitFilter(4, 20, filters="special"), lr=0.01, weight_decay=0.2)
        assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-3, 0.0)]
        groups = parameter_groups(ExplicitFilter(4, 20), lr=0.01, weight_decay=0.2)
        assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.01, 0.2)]


def test_explicit_kernels():
    layer = ExplicitFilter(50, 400, bidirectional=True)
    kernel, reverse = layer(30)
    assert torch.equal(kernel, layer.kernel[:, :30])
    assert torch.equal(reverse, layer.reverse_kernel[:, :30])
    assert layer.kernel.std().item() == pytest.approx(2e-3, rel=0.05)
    assert layer.bfloat16()(7)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be an integer of at least 1; got 0"),
        ({"l_max": 0}, ValueError, "l_max must be an integer of at least 1; got 0"),
        ({"l_max": 10.0}, TypeError, "l_max must be an integer; got 10.0"),
        ({"emb_dim": 4}, ValueError, "emb_dim must be odd and at least 3.*got 4; use 5"),
        ({"emb_dim": 1}, ValueError, "use 3"),
        ({"freq": 0.0}, ValueError, "freq must be above 0"),
        ({"width": 0}, ValueError, "width must be"),
        ({"filters": "specail"}, ValueError, "did you mean 'special'"),
        ({"bidirectional": "no"}, TypeError, "bidirectional must be True or False"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        ImplicitFilter(**{"d_model": 4, "l_max": 10} | options)


@pytest.mark.parametrize("build", [ImplicitFilter, ExplicitFilter])
@pytest.mark.parametrize("length", [0, 11])
def test_lags_that_are_not_there(build, length):
    with pytest.raises(ValueError, match=f"length must be in 1 .. l_max=10; got {length}"):
        build(4, 10)(length)


def test_bad_options_of_explicit_kernels():
    with pytest.raises(ValueError, match="l_max must be an integer of at least 1; got 0"):
        ExplicitFilter(4, 0)
