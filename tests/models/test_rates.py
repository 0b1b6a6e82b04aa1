"""Networks on signals of another sampling rate: steps that are longer or shorter than in training."""

import copy
import math

import pytest
import torch

from milkweed.models import LinearMemory, Sashimi, SequenceModel
from milkweed.nn import S4D, S4ND, ResidualBlock


def build(kind="s4d", **options):
    layer = {"name": kind, "d_state": 8} | options.pop("layer", {})
    return SequenceModel(3, 5, 6, 2, layer, **options).double().eval()


def sashimi(**options):
    options = {"d_model": 4, "depth": 1, "pool": [2], "layer": {"name": "s4", "d_state": 8}} | options
    return Sashimi(3, 5, encoder="linear", **options).double().eval()


def memory(**options):
    return LinearMemory(3, 5, d_model=2, layer={"name": "s4", "d_state": 8}, **options).double().eval()


MODELS = {
    "s4": lambda: build("s4"),
    "s4d": build,
    "dss": lambda: build(layer={"discretization": "dss"}),
    "bidirectional": lambda: build(layer={"bidirectional": True}),
    "batch norm": lambda: build(norm="batch", pooling="none"),
    "sashimi": sashimi,
    "unet": lambda: sashimi(unet=True, pool=[2, 3]),
    "memory": memory,
    "state": lambda: memory(readout="state"),
}


@pytest.mark.parametrize("name", MODELS)
def test_rate_one_changes_nothing(name):
    model, u = MODELS[name](), torch.randn(2, 12, 3, dtype=torch.float64)
    assert torch.equal(model(u, rate=1.0), model(u))
    assert torch.equal(model(u, rate=1), model(u))
    assert not torch.allclose(model(u, rate=2.0), model(u))


def slow(model):
    """A copy of a model whose own timescales are twice as large."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_dt"):
                parameter.add_(math.log(2))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_rate_is_a_factor_on_every_timescale(name):
    model, u = MODELS[name](), torch.randn(2, 24, 3, dtype=torch.float64, requires_grad=True)
    lengths = None if name == "dss" else torch.tensor([24, 7])
    found, expected = model(u, lengths, rate=2.0), slow(model)(u, lengths)
    if found.ndim == 3:
        found, expected = found[1, :7], expected[1, :7]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(y.square().sum(), u)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["s4", "s4d", "batch norm", "sashimi", "unet"])
def test_steps_equal_forward_at_another_rate(name):
    model, u = MODELS[name](), torch.randn(2, 13, 3, dtype=torch.float64)
    stepper = model.stepper(rate=2.0)
    state, found = stepper.initial_state(2), []
    for t in range(13):
        y, state = stepper(u[:, t], state)
        found.append(y)
    whole = model(u, rate=2.0)
    steps = torch.stack(found, 1) if whole.ndim == 3 else found[-1]
    torch.testing.assert_close(steps, whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["s4", "s4d"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_smooth_signals_at_half_the_rate_give_the_same(kind, bidirectional):
    """Every second sample, read in steps twice as long: the difference is that of the discretisation, and falls."""
    layer = {"bidirectional": bidirectional, "dt_min": 1e-3, "dt_max": 1e-2}
    model = build(kind, layer=layer, pooling="mean")

    @torch.no_grad()
    def error(length):
        times = torch.arange(length, dtype=torch.float64) / length
        u = torch.stack([torch.sin(2 * math.pi * (n + 1) * times + n) for n in range(3)], -1)[None]
        # The same signal whatever the number of samples: a step of 1 / length.
        full = model(u, rate=400 / length)
        return float((model(u[:, ::2], rate=800 / length) - full).norm() / full.norm())

    coarse, fine = error(400), error(1600)
    assert coarse < 2e-3
    assert fine < 0.3 * coarse


def test_layers_that_know_only_steps_are_refused_by_name():
    u = torch.randn(2, 12, 3, dtype=torch.float64)
    for name, kind, options in (
        ("LongConv", "long_conv", {"l_max": 12}),
        ("MonarchMixer", "monarch_mixer", {"seq_len": 16}),
        ("GatedMixer", "gated_mixer", {"l_max": 12}),
        ("CausalMonarchMixer", "causal_monarch", {"seq_len": 16}),
    ):
        model = SequenceModel(3, 5, 16, 1, {"name": kind} | options).double()
        assert model(u, rate=1.0).shape == (2, 5)
        with pytest.raises(ValueError, match=rf"rate must be 1 for a {name}.*got 2\.0; use a state space.*S4D"):
            model(u, rate=2.0)


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf, "2", None, True, torch.tensor([2.0, 1.0])])
def test_rates_that_are_none_are_refused(rate):
    u = torch.randn(1, 4, 3, dtype=torch.float64)
    for model in (build(), sashimi(), memory()):
        with pytest.raises(ValueError, match="rate must be above 0"):
            model(u, rate=rate)


def test_blocks_pass_a_rate_for_every_axis():
    block = ResidualBlock(S4ND(4, dims=2, d_state=4), 4).double()
    u = torch.randn(1, 5, 6, 4, dtype=torch.float64)
    expected = u + block.layer(block.norm(u), rate=(2.0, 0.5))
    torch.testing.assert_close(block(u, rate=(2.0, 0.5)), expected)


def test_a_block_at_another_rate_compiles_and_runs_in_bfloat16():
    block, u = ResidualBlock(S4D(4, 8), 4), torch.randn(2, 9, 4)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(u, rate=2.0), block(u, rate=2.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(block(u, rate=2.0)).all()
