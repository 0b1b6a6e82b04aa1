"""Every sequence layer that has a name, under the contract; those that see the future say what they cannot."""

import pytest
import torch
from tests.contracts import sequence_layer as contract

import milkweed as mw
from milkweed._registry import registered
from milkweed.models import SequenceModel
from milkweed.nn import CausalMonarchMixer, ImplicitFilter, LongConv, ResidualBlock, SequenceLayer, build_sequence_layer

CAUSAL = [
    {"name": "causal_monarch", "seq_len": 200, "heads": 2},
    {"name": "causal_monarch", "seq_len": 200, "construction": "chebyshev", "order": 3, "gate": True},
    {"name": "causal_monarch", "seq_len": 200, "filter": {"width": 8}, "output": "linear"},
    {"name": "gated_mixer", "l_max": 200, "kernel_options": {"width": 8}},
    {"name": "long_conv", "l_max": 200, "width": 8},
    {"name": "long_conv", "l_max": 200, "kernel": "explicit", "activation": "silu", "gate": True},
    {"name": "s4", "d_state": 8},
    {"name": "s4d", "d_state": 8},
]
BOTH_WAYS = [
    {"name": "gated_mixer", "l_max": 200, "bidirectional": True, "kernel_options": {"width": 8}},
    {"name": "long_conv", "l_max": 200, "bidirectional": True, "width": 8},
    {"name": "monarch_mixer", "seq_len": 200, "start": "random"},
    {"name": "s4d", "d_state": 8, "bidirectional": True},
]


def label(spec):
    return "-".join(str(value) for value in spec.values())


causal = pytest.mark.parametrize("spec", CAUSAL, ids=label)
both_ways = pytest.mark.parametrize("spec", BOTH_WAYS, ids=label)
every = pytest.mark.parametrize("spec", CAUSAL + BOTH_WAYS, ids=label)


def build(spec, device="cpu"):
    with torch.device(device):
        return build_sequence_layer(spec, 4)


def test_all_names_are_tested():
    assert {spec["name"] for spec in CAUSAL + BOTH_WAYS} == set(registered("layer"))


@causal
def test_steps_and_chunks_equal_forward(spec):
    layer = build(spec).double()
    u = torch.randn(2, 41, 4, dtype=torch.float64)
    y, stepper = layer(u).detach(), layer.stepper(1.0)
    state, outputs = stepper.initial_state(2), []
    for t in range(41):
        y_t, state = stepper(u[:, t], state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), y, **contract.TIGHT)
    state, chunks, start = stepper.initial_state(2), [], 0
    for size in (1, 20, 3, 17):
        chunk, state = stepper.read(u[:, start : start + size], state)
        chunks.append(chunk)
        start += size
    torch.testing.assert_close(torch.cat(chunks, 1), y, **contract.TIGHT)
    assert not chunks[0].requires_grad


@every
def test_who_sees_the_future(spec):
    u = torch.randn(1, 12, 4, dtype=torch.float64)
    contract.check_causality(build(spec).double(), u, causal=spec in CAUSAL)


@every
def test_padding(spec):
    layer = build(spec).double()
    contract.check_padding(layer, torch.randn(3, 20, 4, dtype=torch.float64), [20, 7, 1])
    u = torch.randn(2, 20, 4, dtype=torch.float64)
    u[1, 9:] = float("nan")
    y = layer(u.requires_grad_(), lengths=torch.tensor([20, 9]))
    y.square().sum().backward()
    for tensor in (y, u.grad, *(p.grad for p in layer.parameters())):
        assert tensor.isfinite().all()
    assert not u.grad[1, 9:].any()


@pytest.mark.sampled(3)
@every
def test_compiles_and_exports(spec):
    contract.check_compiles_and_exports(build(spec).double(), longest=200)


@every
def test_precision_copies_and_meta(spec):
    contract.check_autocast(build(spec))
    contract.check_copies(build(spec))
    contract.check_meta(lambda device: build(spec, device))


@pytest.mark.sampled
@every
@pytest.mark.parametrize("length", [1, 63, 199])
def test_inside_a_network(spec, length):
    model = SequenceModel(3, 2, d_model=4, depth=2, layer=spec, pooling="none")
    inputs, lengths = torch.randn(2, length, 3), torch.tensor([length, (length + 1) // 2])
    y = model(inputs, lengths)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.options["layer"] == spec
    again = SequenceModel(**model.options)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(inputs, lengths), y)
    assert model(inputs[:0]).shape == (0, length, 2)


@causal
def test_a_network_by_steps(spec):
    model = SequenceModel(3, 2, d_model=4, depth=2, layer=spec).double().eval()
    inputs, stepper = torch.randn(2, 40, 3, dtype=torch.float64), model.stepper()
    y, state = stepper.read(inputs[:, :33], stepper.initial_state(2))
    for t in range(33, 40):
        torch.testing.assert_close(y, model(inputs[:, :t]).detach(), **contract.TIGHT)
        y, state = stepper(inputs[:, t], state)
    torch.testing.assert_close(y, model(inputs).detach(), **contract.TIGHT)


@both_ways
def test_no_steps_into_the_future(spec):
    model = SequenceModel(3, 2, d_model=4, depth=1, layer=spec)
    with pytest.raises(
        (ValueError, TypeError), match=r"outputs? depends? on the (future|whole sequence); call it on whole"
    ):
        model.stepper()


@pytest.mark.parametrize("spec", [spec for spec in CAUSAL if not spec["name"].startswith("s4")], ids=label)
def test_no_other_rate(spec):
    with pytest.raises(ValueError, match="rate must be 1"):
        ResidualBlock(build(spec), 4).stepper(2.0)


def test_what_follows_a_filter():
    conv = LongConv(4, 50, width=8)
    layer = SequenceLayer(conv, gate=True, activation="tanh").double()
    u = torch.randn(2, 30, 4, dtype=torch.float64)
    y = torch.tanh(conv(u)) * torch.nn.functional.silu(layer.mix.gate(u))
    first, second = (y @ layer.mix.output.weight.T + layer.mix.output.bias).split(4, -1)
    torch.testing.assert_close(layer(u), first * torch.sigmoid(second), **contract.TIGHT)
    plain = SequenceLayer(conv, activation="none", output="none")
    assert torch.equal(plain(u), conv(u))
    layer.train()
    dropping = SequenceLayer(conv, dropout=0.5).double()
    stepper = dropping.stepper()
    read, _ = stepper.read(u, stepper.initial_state(2))
    torch.testing.assert_close(read, dropping.eval()(u).detach(), **contract.TIGHT)


def test_a_stepper_keeps_its_parameters():
    layer, u = build(CAUSAL[4]), torch.randn(2, 4)
    stepper = layer.stepper()
    before, _ = stepper(u, stepper.initial_state(2))
    layer.reset_parameters()
    assert torch.equal(stepper(u, stepper.initial_state(2))[0], before)


def test_a_filter_by_its_arguments():
    layer = CausalMonarchMixer(4, 50, filter={"width": 8, "filters": "special"})
    assert isinstance(layer.filter, ImplicitFilter)
    assert (layer.filter.l_max, layer.filter.frequency.shape) == (50, (8,))
    assert {group["lr"] for group in mw.nn.parameter_groups(layer, lr=0.5)} == {0.5, 1e-3, 1e-5}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            {"name": "long_conv"},
            ValueError,
            r"layer long_conv needs l_max, e\.g\. {'name': 'long_conv', 'l_max': 1024}",
        ),
        ({"name": "causal_monarch"}, ValueError, "layer causal_monarch needs seq_len"),
        ({"name": "long_conf", "l_max": 9}, ValueError, "did you mean 'long_conv'"),
        ({"name": "long_conv", "l_max": 9, "kernl": "explicit"}, ValueError, "did you mean 'kernel'"),
        ({"name": "long_conv", "l_max": 9, "device": "cpu"}, ValueError, "option='device' is unknown"),
        ({"name": "long_conv", "l_max": 9, "output": "gul"}, ValueError, "did you mean 'glu'"),
        ({"name": "long_conv", "l_max": 9, "squash": "much"}, ValueError, "layer.squash must be float"),
        ({"name": "gated_mixer", "l_max": 2.5}, TypeError, "l_max must be an integer"),
        ({"name": "causal_monarch", "seq_len": 9, "filter": {"widht": 8}}, ValueError, "did you mean 'width'"),
        ({"name": "causal_monarch", "seq_len": 9, "filter": {"l_max": 8}}, ValueError, "filter='l_max' is unknown"),
        (
            {"name": "causal_monarch", "seq_len": 9, "filter": "implicit"},
            TypeError,
            "filter must be a module, a mapping",
        ),
    ],
)
def test_bad_specs(spec, error, message):
    with pytest.raises(error, match=message):
        build_sequence_layer(spec, 4)


@pytest.mark.parametrize("tied", [False, True])
def test_dropout_may_be_left_on_in_evaluation(tied):
    layer = mw.nn.S4D(64, dropout=0.5, tie_dropout=tied, output="none", activation="none").eval()
    u = torch.randn(2, 50, 64)
    still = layer(u)
    for module in layer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    y = layer(u)
    kept = y != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(y[kept], 2 * still[kept])
