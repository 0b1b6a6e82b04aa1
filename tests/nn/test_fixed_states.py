"""Steppers whose states keep their size."""

import copy

import pytest
import torch
from tests.contracts.exported import DYNAMIC, relative_error, to_onnx

from milkweed import nn
from milkweed.models import M2Gpt, SequenceModel

TIGHT = {"rtol": 1e-7, "atol": 1e-9}
LENGTH = 12

LAYERS = {
    "long_conv": lambda: nn.LongConv(4, l_max=LENGTH),
    "causal_monarch": lambda: nn.CausalMonarchMixer(4, seq_len=LENGTH),
    "gated_mixer": lambda: nn.GatedMixer(4, l_max=LENGTH, bidirectional=False),
    "s4": lambda: nn.S4(4, d_state=4),
    "s4d": lambda: nn.S4D(4, d_state=4),
    "network": lambda: SequenceModel(
        4, 4, d_model=6, depth=2, layer={"name": "long_conv", "l_max": LENGTH, "kernel": "explicit"}, pooling="none"
    ),
}


def build(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return layer


def sizes(state):
    return [leaf.shape for leaf in torch.utils._pytree.tree_leaves(state) if leaf is not None]


@pytest.mark.parametrize("name", LAYERS)
def test_steps_and_reads_as_the_layer(name):
    layer, u = build(name), torch.randn(2, LENGTH, 4, dtype=torch.float64)
    own = layer.stepper()
    stepper = nn.fixed_states(own)
    expected = layer(u).detach()
    start = state = stepper.initial_state(2)
    outputs = []
    for t in range(LENGTH):
        y, state = stepper(u[:, t], state)
        assert sizes(state) == sizes(start)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected, **TIGHT)
    y, state = stepper.read(u[:, :5], start)
    torch.testing.assert_close(y, expected[:, :5], **TIGHT)
    torch.testing.assert_close(stepper.read(u[:, 5:], state)[0], expected[:, 5:], **TIGHT)
    torch.testing.assert_close(own(u[:, 0], own.initial_state(2))[0], expected[:, 0], **TIGHT)


def test_tokens():
    torch.manual_seed(0)
    model = M2Gpt(20, 20, length=LENGTH, d_model=8, depth=2).double().eval()
    tokens, stepper = torch.randint(20, (2, LENGTH)), nn.fixed_states(model.stepper())
    state = start = stepper.initial_state(2)
    for t in range(LENGTH):
        y, state = stepper(tokens[:, t], state)
        assert sizes(state) == sizes(start)
    torch.testing.assert_close(y, model(tokens)[:, -1].detach(), **TIGHT)


def test_what_is_refused():
    with pytest.raises(TypeError, match="stepper must be"):
        nn.fixed_states(build("long_conv"))
    stepper = nn.fixed_states(build("causal_monarch").stepper())
    _, state = stepper.read(torch.randn(1, LENGTH, 4, dtype=torch.float64), stepper.initial_state(1))
    with pytest.raises(ValueError, match=f"has taken {LENGTH} steps and cannot take 1 more"):
        stepper(torch.randn(1, 4, dtype=torch.float64), state)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["causal_monarch", "long_conv", "s4", "s4d", "gated_mixer", "network"])
def test_one_step_in_another_runtime(name):
    layer, u = build(name).float(), torch.randn(2, LENGTH, 4)
    stepper = nn.fixed_states(layer.stepper())
    state = stepper.initial_state(3)
    shapes = torch.utils._pytree.tree_map(lambda leaf: {0: DYNAMIC} if leaf is not None and leaf.ndim else None, state)
    step = to_onnx(stepper, (u.new_zeros(3, 4), state), ({0: DYNAMIC}, shapes))
    state, outputs = (
        [leaf for leaf in torch.utils._pytree.tree_leaves(stepper.initial_state(2)) if leaf is not None],
        [],
    )
    for t in range(LENGTH):
        y, *state = step(u[:, t], state)
        outputs.append(y)
    expected = copy.deepcopy(layer).double()(u.double()).detach()
    own = relative_error(layer(u).detach(), expected)
    assert relative_error(torch.stack(outputs, 1), expected) <= 2 * own + 1e-6
