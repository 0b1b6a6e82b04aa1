"""What every sequence layer does at the edges: numbers that are none, and batches without sequences."""

import pytest
import torch
from tests.contracts.sequence_layer import check_compiled_empty_batch, check_empty_batch, check_past_is_kept

from milkweed import nn, ops

D, L = 6, 40
CAUSAL = {
    "s4": lambda: nn.S4(D, 8),
    "s4d": lambda: nn.S4D(D, 8),
    "s4d with a gate": lambda: nn.S4D(D, 8, channels=2, gate=True),
    "dss": lambda: nn.S4D(D, 8, discretization="dss"),
    "long_conv": lambda: nn.LongConv(D, L),
    "explicit long_conv": lambda: nn.LongConv(D, L, kernel="explicit"),
    "filter layer": lambda: nn.SequenceLayer(nn.LongConv(D, L)),
    **{
        f"{construction} of order {order}": lambda construction=construction, order=order: nn.CausalMonarchMixer(
            D, L, construction, order=order, heads=2
        )
        for construction in ("kronecker", "bivariate", "chebyshev")
        for order in (2, 3)
    },
}
OTHERS = {
    "bidirectional s4": lambda: nn.S4(D, 8, bidirectional=True),
    "bidirectional long_conv": lambda: nn.LongConv(D, L, bidirectional=True),
    "gated mixer": lambda: nn.GatedMixer(D, L),
    "monarch mixer": lambda: nn.MonarchMixer(D, L),
}


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_past_is_kept(kind):
    layer = CAUSAL[kind]()
    check_past_is_kept(layer, torch.randn(3, L, D), channel_mixing=not isinstance(layer, nn.LongConv))


@pytest.mark.parametrize("kind", ["kronecker of order 2", "bivariate of order 3"])
def test_the_past_is_kept_where_nothing_can_be_asked(kind):
    layer = CAUSAL[kind]()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with ops.use_backend("eager"):  # which a program for other runtimes does not have
        exported = torch.export.export(layer, (torch.randn(3, L, D),)).module()
    for function in (compiled, exported, torch.func.vmap(layer)):
        check_past_is_kept(function, torch.randn(3, L, D))


def test_a_bivariate_mixer_carries_nothing_to_steps_that_do_not_depend():
    layer = nn.CausalMonarchMixer(2, 36, "bivariate")
    u = torch.randn(1, 36, 2)
    with torch.no_grad():
        for factor in (*layer.output_factors, *layer.kernel_factors, *layer.input_factors):
            factor.normal_(std=0.1)
        layer.kernel.normal_()
        dependent = torch.autograd.functional.jacobian(lambda u: layer(u)[0, :, 0], u)[:, 0, :, 0].abs() > 1e-6
        for t in (0, 5, 14):
            broken = u.clone()
            broken[0, t, 0] = torch.nan
            y = layer(broken)
            assert torch.equal(y[0, :, 0].isnan(), dependent[:, t])
            assert y[0, :, 1].isfinite().all()


@pytest.mark.parametrize("kind", [k for k in CAUSAL if k not in {"dss", "filter layer"} and "order" not in k])
def test_chunks_and_steps_keep_the_past(kind):
    layer = CAUSAL[kind]()
    u = torch.randn(2, L, D)
    broken = u.clone()
    broken[1, 20, 3] = torch.nan
    with torch.no_grad():
        whole, clean = layer(broken), layer(u)
        first, state = layer(broken[:, :15], return_state=True)
        second, state = layer(broken[:, 15:], state, return_state=True)
        found = torch.cat([first, second], 1)
        stepper, steps = layer.stepper(), []
        state = stepper.initial_state(2)
        for t in range(L):
            y, state = stepper(broken[:, t], state)
            steps.append(y)
        for y in (whole, found, torch.stack(steps, 1)):
            torch.testing.assert_close(y[0], clean[0], rtol=0, atol=1e-4)
            torch.testing.assert_close(y[1, :20], clean[1, :20], rtol=0, atol=1e-4)
            assert not y[1, 20].isfinite().all()


@pytest.mark.parametrize("construction", ["kronecker", "bivariate", "chebyshev"])
def test_reading_with_a_causal_mixer_keeps_the_past(construction):
    layer = nn.CausalMonarchMixer(D, L, construction)
    u = torch.randn(2, L, D)
    u[1, 20, 3] = torch.nan
    stepper = layer.stepper()
    with torch.no_grad():
        y, state = stepper.read(u[:, :30], stepper.initial_state(2))
        rest, _ = stepper.read(u[:, 30:], state)
        clean = layer(torch.nan_to_num(u))
    torch.testing.assert_close(torch.cat([y, rest], 1)[0], clean[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(y[1, :20], clean[1, :20], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CAUSAL | OTHERS)
def test_empty_batches(kind):
    check_empty_batch((CAUSAL | OTHERS)[kind](), torch.randn(1, L, D))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", CAUSAL | OTHERS)
def test_compiled_empty_batches(kind):
    check_compiled_empty_batch((CAUSAL | OTHERS)[kind](), torch.randn(1, L, D))


@pytest.mark.parametrize("kind", [k for k in CAUSAL if k != "dss"])
def test_steps_of_no_sequences(kind):
    layer = CAUSAL[kind]()
    stepper = layer.stepper()
    state = stepper.initial_state(0)
    y, state = stepper(torch.randn(0, D), state)
    assert y.shape == (0, D)
    y, state = stepper.read(torch.randn(0, 35, D), state)
    assert y.shape == (0, 35, D)
    assert stepper(torch.randn(0, D), state)[0].shape == (0, D)
