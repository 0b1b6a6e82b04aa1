"""Whole layers in half precision: what would be ruined by it stays in float32."""

import copy

import pytest
import torch

import milkweed as mw
from milkweed.nn import S4D, S4ND, ImplicitFilter, LongConv, build_sequence_layer
from milkweed.nn.filters import S4DFilter
from milkweed.nn.filters.state_space import StateSpaceStepper

LENGTH = 512
LAYERS = {
    "causal_monarch": {"seq_len": LENGTH},
    "causal_monarch, filter": {"seq_len": LENGTH, "filter": {"width": 16}},
    "gated_mixer": {"l_max": LENGTH},
    "long_conv": {"l_max": LENGTH},
    "long_conv, explicit": {"l_max": LENGTH, "kernel": "explicit", "bidirectional": True},
    "monarch_mixer": {"seq_len": LENGTH},
    "s4": {},
    "s4, fout": {"init": "fout", "bidirectional": True},
    "s4, legt": {"init": "legt", "gate": True, "discretization": "zoh"},
    "s4d": {},
    "s4d, lin": {"init": "lin", "bidirectional": True, "channels": 2},
    "s4d, none": {"activation": "none", "output": "none"},
}
HALVES = [torch.bfloat16, torch.float16]


def build(name):
    return build_sequence_layer({"name": name.split(",")[0], **LAYERS[name]}, 16)


def off(found, expected):
    return ((found.detach().float() - expected).norm() / expected.norm()).item()


@pytest.mark.sampled
@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_cast_layer_is_close_to_the_layer(name, half):
    torch.manual_seed(0)
    layer, u = build(name).eval(), torch.randn(2, LENGTH, 16)
    expected = layer(u).detach()
    y = copy.deepcopy(layer).to(half)(u.to(half))
    assert y.dtype == half
    assert off(y, expected) < 0.03
    with torch.autocast("cpu", dtype=half):
        assert off(layer(u), expected) < 0.03


def test_images():
    torch.manual_seed(0)
    layer, u = S4ND(8, d_state=16).eval(), torch.randn(2, 20, 24, 8)
    assert off(copy.deepcopy(layer).bfloat16()(u.bfloat16()), layer(u).detach()) < 0.03


@pytest.mark.sampled
@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", ["s4", "s4d", "long_conv", "gated_mixer"])
def test_a_cast_model_is_close_to_the_model(name, half):
    torch.manual_seed(0)
    layer = {"name": name, **LAYERS[name]}
    for options in ({"pooling": "mean"}, {"pooling": "none", "norm": "batch"}):
        model = mw.models.SequenceModel(3, 5, d_model=16, depth=2, layer=layer, **options).eval()
        u = torch.randn(2, LENGTH, 3)
        assert off(copy.deepcopy(model).to(half)(u.to(half)), model(u).detach()) < 0.03


def test_what_stays():
    model = mw.models.SequenceModel(3, 5, d_model=4, depth=1, layer={"name": "s4d", "d_state": 4})
    before = copy.deepcopy(model.state_dict())
    for name, tensor in model.bfloat16().half().state_dict().items():
        if ".filter." in name:
            assert torch.equal(tensor, before[name])
            assert tensor.dtype == torch.float32
        else:
            assert tensor.dtype == torch.float16
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    # From double to half there is a rounding to single on the way, not further.
    model.bfloat16()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if ".filter." in n)
    assert {p.dtype for p in S4DFilter(4, dtype=torch.bfloat16).parameters()} == {torch.float32}
    assert {p.dtype for p in ImplicitFilter(4, 9, dtype=torch.float16).parameters()} == {torch.float32}
    assert {p.dtype for p in S4D(4, 4, dtype=torch.float64).parameters()} == {torch.float64}


def test_the_default_dtype_may_be_half():
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = S4D(4, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in layer.filter.parameters()} == {torch.float32}
    assert {p.dtype for p in layer.mix.parameters()} == {torch.bfloat16}


def test_small_steps_are_not_lost():
    layer = S4D(4, 4).bfloat16()
    before = layer.filter.A_imag.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)
    layer(torch.randn(2, 50, 4, dtype=torch.bfloat16)).float().square().sum().backward()
    optimizer.step()
    step = layer.filter.A_imag.detach() - before
    torch.testing.assert_close(step, -1e-6 * layer.filter.A_imag.grad, rtol=0.1, atol=1e-6)
    assert step.any()


def test_a_saved_half_loads(tmp_path):
    torch.manual_seed(0)
    model = mw.models.SequenceModel(3, 5, d_model=4, depth=1, layer={"name": "s4d", "d_state": 4}).bfloat16().eval()
    mw.save_pretrained(model, tmp_path)
    loaded, u = mw.load_pretrained(tmp_path), torch.randn(2, 9, 3, dtype=torch.bfloat16)
    assert torch.equal(loaded(u), model(u))


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_steppers_in_half_precision(half):
    torch.manual_seed(0)
    for layer in (S4D(4, 8), S4D(4, 8, init="real"), build_sequence_layer({"name": "s4", "d_state": 8}, 4)):
        u, expected = torch.randn(2, 200, 4), None
        expected = layer(u).detach()
        stepper = layer.stepper().to(half)
        assert isinstance(stepper.inner, StateSpaceStepper)
        state = stepper.initial_state(2)
        assert state.dtype == torch.float32
        outputs = []
        for t in range(200):
            y, state = stepper(u[:, t].to(half), state)
            outputs.append(y)
        assert off(torch.stack(outputs, 1), expected) < 0.03


def test_reductions_over_long_sequences():
    # 2,048 steps of 1 in bfloat16, added one by one, stay at 256.
    x = torch.ones(1, 2048, 2, dtype=torch.bfloat16)
    assert (mw.models.sequence_model.pool(x, "mean") == 1).all()
    assert (mw.models.sequence_model.pool(x, "mean", torch.tensor([1500])) == 1).all()
    # Of 2,048 times 100 the sum is beyond float16, the mean is not.
    large = torch.full((1, 2048, 2), 100.0, dtype=torch.float16)
    assert (mw.models.sequence_model.pool(large, "mean") == 100).all()
    model = mw.models.SequenceModel(2, 2, d_model=4, depth=1, layer={"name": "long_conv", "l_max": 600}).bfloat16()
    stepper, u = model.eval().stepper(), torch.randn(1, 600, 2, dtype=torch.bfloat16)
    _, state = stepper.read(u, stepper.initial_state(1))
    assert state.total.dtype == torch.float32


def test_a_bare_filter_takes_half_precision_signals():
    u = torch.randn(2, 30, 4)
    filter = S4DFilter(4, 8)
    assert off(filter(u.bfloat16()), filter(u).detach()) < 0.01
    for other in (LongConv(4, 50), build("s4d").double()):
        with pytest.raises(TypeError, match="u must be torch"):
            other(u.half())
