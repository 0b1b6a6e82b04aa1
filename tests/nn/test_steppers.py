"""Steppers as modules: nothing to train, moved and saved like any module, and exported where states have one size."""

import copy

import pytest
import torch

from milkweed.models import M2Gpt, Sashimi, SequenceModel
from milkweed.nn import S4D, LongConv, Mlp, ResidualBlock, build_sequence_layer

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
SPECS = {
    "causal_monarch": {"seq_len": 64},
    "gated_mixer": {"l_max": 64},
    "long_conv": {"l_max": 64},
    "s4": {"d_state": 4},
    "s4d": {"d_state": 4, "channels": 2, "gate": True},
}
FIXED_STATES = ("s4", "s4d")


def build(name):
    return build_sequence_layer({"name": name, **SPECS[name]}, 4).eval()


def run(stepper, u):
    state, outputs = stepper.initial_state(u.shape[0]), []
    for t in range(u.shape[1]):
        y, state = stepper(u[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", SPECS)
def test_moved_and_saved(name):
    torch.manual_seed(0)
    layer, u = build(name), torch.randn(2, 40, 4)
    stepper = layer.stepper()
    expected = run(stepper, u)
    assert not any(p.requires_grad for p in stepper.parameters())
    for tensor in (*stepper.parameters(), *stepper.buffers()):
        assert not tensor.requires_grad
    other = build(name).stepper()
    assert not torch.equal(run(other, u), expected)
    other.load_state_dict(stepper.state_dict())
    assert torch.equal(run(other, u), expected)
    wide = stepper.double()
    torch.testing.assert_close(run(wide, u.double()), layer.double()(u.double()).detach(), rtol=1e-4, atol=1e-5)
    copied = copy.deepcopy(wide)
    assert torch.equal(run(copied, u.double()), run(wide, u.double()))
    assert all(tensor.is_meta for tensor in (*other.to("meta").parameters(), *other.buffers()))


@pytest.mark.sampled
@pytest.mark.parametrize("name", FIXED_STATES)
def test_exported(name):
    torch.manual_seed(0)
    layer, u = build(name).double(), torch.randn(2, 9, 4, dtype=torch.float64)
    stepper = layer.stepper()
    exported = torch.export.export(stepper, (u[:, 0], stepper.initial_state(2))).module()
    state, outputs = stepper.initial_state(2), []
    for t in range(9):
        y, state = exported(u[:, t], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), layer(u).detach(), **TIGHT)


@pytest.mark.sampled
@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_a_network_is_exported(pooling):
    torch.manual_seed(0)
    layer = {"name": "s4d", "d_state": 4}
    model = SequenceModel(3, 2, d_model=4, depth=2, layer=layer, norm="batch", pooling=pooling).double().eval()
    u, stepper = torch.randn(2, 9, 3, dtype=torch.float64), model.stepper()
    dims = {0: torch.export.Dim("batch")}
    state = stepper.initial_state(2)
    shapes = (dims, type(state)(tuple(dims for _ in state.layers), None if state.total is None else dims, None))
    exported = torch.export.export(stepper, (u[:, 0], state), dynamic_shapes=shapes).module()
    for t in range(9):
        y, state = exported(u[:, t], state)
    expected = model(u).detach()
    torch.testing.assert_close(y, expected[:, -1] if pooling == "none" else expected, **TIGHT)
    one = stepper.initial_state(1)
    assert exported(u[:1, 0], one)[0].shape == (1, 2)


def test_compiled():
    layer, u = build("s4d"), torch.randn(2, 6, 4)
    stepper = layer.stepper()
    compiled = torch.compile(stepper, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run_compiled(compiled, stepper, u), run(stepper, u))


def run_compiled(compiled, stepper, u):
    state, outputs = stepper.initial_state(u.shape[0]), []
    for t in range(u.shape[1]):
        y, state = compiled(u[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SequenceModel(3, 2, d_model=4, depth=2, layer={"name": "s4d", "d_state": 4}),
        lambda: Sashimi(7, 7, d_model=4, depth=1, pool=[2], layer={"name": "s4d", "d_state": 4}),
        lambda: M2Gpt(7, 7, length=12, d_model=8, depth=1, heads=2),
        lambda: ResidualBlock(Mlp(3, 4), 3),
        lambda: LongConv(3, 12),
        lambda: S4D(3, 4),
    ],
)
def test_every_stepper_is_a_module(make):
    stepper = make().stepper()
    assert isinstance(stepper, torch.nn.Module)
    assert not any(p.requires_grad for p in stepper.parameters())
    assert stepper.state_dict().keys() == make().stepper().state_dict().keys()


@pytest.mark.parametrize("name", [name for name in SPECS if name != "gated_mixer"])
def test_states_are_carried_with_gradients(name):
    torch.manual_seed(0)
    layer, u = build(name).double(), torch.randn(2, 40, 4, dtype=torch.float64, requires_grad=True)
    whole = layer(u)
    first, state = layer(u[:, :17], return_state=True)
    second, state = layer(u[:, 17:30], state, return_state=True)
    third = layer(u[:, 30:], state)
    together = torch.cat([first, second, third], 1)
    torch.testing.assert_close(together, whole, **TIGHT)
    weights = torch.randn_like(whole)
    expected = torch.autograd.grad((whole * weights).sum(), [u, *layer.parameters()], allow_unused=True)
    found = torch.autograd.grad((together * weights).sum(), [u, *layer.parameters()], allow_unused=True)
    for each, right in zip(found, expected, strict=True):
        torch.testing.assert_close(each, right, rtol=1e-8, atol=1e-8)
