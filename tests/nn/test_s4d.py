"""S4D under the sequence layers' contract, over initialisation × discretisation × direction."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts import sequence_layer as contract
from torch.autograd import gradcheck

from milkweed import ssm
from milkweed.convert.checkpoints import s4
from milkweed.nn import S4D

GOLDEN = Path(__file__).parents[1] / "golden" / "s4d_minimal.safetensors"
INITS = [*ssm.DIAGONAL_INITS, *ssm.COMBINATIONS]
LENGTHS = [1, 2, 63, 101]


def build(init="legs", discretization="zoh", bidirectional=False, **kwargs):
    # Combinations divide the channels between two.
    d_model = 6 if init in ssm.COMBINATIONS else 5
    return S4D(d_model, 8, init, discretization=discretization, bidirectional=bidirectional, **kwargs)


def unrolled(layer, u, rate=1.0):
    """The layer by its equations in complex128, step by step, with no code of its own. (B, L, H) float64."""
    dt = torch.exp(layer.filter.log_dt.detach())[:, None] * rate
    A = -torch.exp(layer.filter.A_real.detach()).to(torch.complex128)
    if layer.filter.A_imag is not None:
        A = A + 1j * layer.filter.A_imag.detach()
    C = layer.filter.C.detach()
    C = C[..., 0] * 2**0.5 / 2 + 0j if layer.filter.A_imag is None else torch.view_as_complex(C)
    if layer.filter.discretization == "zoh":
        a, b = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    else:
        a, b = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)

    def run(u, C):
        x = torch.zeros(u.shape[0], *A.shape, dtype=torch.complex128)
        outputs = []
        for t in range(u.shape[1]):
            x = a * x + b * u[:, t, :, None]
            outputs.append(2 * (C * x).sum(-1).real)
        return torch.stack(outputs, 1)

    y = run(u, C[0])
    if layer.filter.bidirectional:
        later = run(u.flip(1), C[1]).flip(1)
        y = y + torch.cat([later[:, 1:], torch.zeros_like(later[:, :1])], 1)
    y = torch.nn.functional.gelu(y + layer.filter.D.detach() * u)
    return torch.nn.functional.glu(y @ layer.mix.output.weight.detach().T + layer.mix.output.bias.detach(), -1)


@pytest.mark.sampled
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("bidirectional", [False, True])
class TestContract:
    @pytest.fixture
    def layer(self, init, discretization, bidirectional):
        return build(init, discretization, bidirectional, dtype=torch.float64)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_equals_the_equations(self, layer, length):
        u = torch.randn(2, length, layer.d_model, dtype=torch.float64)
        torch.testing.assert_close(layer(u), unrolled(layer, u), rtol=1e-9, atol=1e-9)

    def test_rate(self, layer):
        u = torch.randn(2, 20, layer.d_model, dtype=torch.float64)
        torch.testing.assert_close(layer(u, rate=2.0), unrolled(layer, u, rate=2.0), rtol=1e-9, atol=1e-9)

    def test_steps_equal_forward(self, layer, bidirectional):
        if bidirectional:
            with pytest.raises(ValueError, match="depends on the future"):
                layer.stepper()
            with pytest.raises(ValueError, match="depends on the future"):
                layer(torch.randn(1, 4, layer.d_model).double(), return_state=True)
        else:
            contract.check_steps_equal_forward(layer, torch.randn(2, 41, layer.d_model, dtype=torch.float64))

    def test_causality(self, layer, bidirectional):
        contract.check_causality(
            layer, torch.randn(1, 12, layer.d_model, dtype=torch.float64), causal=not bidirectional
        )

    def test_padding(self, layer):
        contract.check_padding(layer, torch.randn(3, 20, layer.d_model, dtype=torch.float64), [20, 7, 1])

    def test_finite(self, init, discretization, bidirectional):
        contract.check_finite(build(init, discretization, bidirectional), 1000)

    def test_float32_gradients(self, init, discretization, bidirectional):
        # Measured: 2e-4 in the worst parameter, log dt, whose gradient is a sum over frequencies times lags that nearly
        # cancels.
        layer = S4D(4, 64, init, discretization=discretization, bidirectional=bidirectional)
        contract.check_float32_gradients(layer, 4096, 1e-3)

    def test_autocast(self, init, discretization, bidirectional):
        contract.check_autocast(build(init, discretization, bidirectional))

    def test_meta(self, init, discretization, bidirectional):
        contract.check_meta(lambda **kwargs: build(init, discretization, bidirectional, **kwargs))

    def test_all_parameters_have_gradients(self, layer):
        names, values = zip(*layer.named_parameters(), strict=True)
        u = torch.randn(1, 6, layer.d_model, dtype=torch.float64, requires_grad=True)

        def function(u, *values):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

        assert gradcheck(function, (u, *values))


@pytest.mark.parametrize(("init", "bidirectional"), [("legs", False), ("real", True)])
def test_compiles_and_exports(init, bidirectional):
    contract.check_compiles_and_exports(build(init, bidirectional=bidirectional))


def test_compiles_with_lengths_and_state():
    layer = build()
    u, lengths = torch.randn(2, 20, 5), torch.tensor([20, 7])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, state = compiled(u, lengths=lengths, return_state=True)
    expected, expected_state = layer(u, lengths=lengths, return_state=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)


def test_copies():
    contract.check_copies(build())


def test_state_after_padded_sequences():
    layer = build(dtype=torch.float64)
    u, start = torch.randn(3, 20, 5, dtype=torch.float64), torch.randn(3, 5, 4, 2, dtype=torch.float64)
    _, state = layer(u, start, lengths=torch.tensor([20, 7, 1]), return_state=True)
    for i, length in enumerate([20, 7, 1]):
        _, alone = layer(u[i : i + 1, :length], start[i : i + 1], return_state=True)
        torch.testing.assert_close(state[i], alone[0], rtol=1e-10, atol=1e-10)


def test_any_leading_shape():
    layer = build(dtype=torch.float64)
    u = torch.randn(2, 3, 9, 5, dtype=torch.float64)
    y, state = layer(u, return_state=True)
    assert state.shape == (2, 3, 5, 4, 2)
    torch.testing.assert_close(y[1, 2], layer(u[1, 2]))
    assert layer(torch.randn(0, 9, 5, dtype=torch.float64)).shape == (0, 9, 5)


def test_golden_import():
    from safetensors.torch import load_file

    stored = load_file(GOLDEN)
    layer = s4.load_s4d_minimal({k: v for k, v in stored.items() if not k.startswith("__")})
    y = layer(stored["__u"].transpose(1, 2)).transpose(1, 2)
    assert (y - stored["__y"]).abs().max() < 1e-6
    kernel = layer.filter.system().kernel(64)[0]
    assert (kernel - stored["__kernel"]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("D"), r"missing \['D'\]"),
        (lambda s: s.update(extra=torch.zeros(1)), r"unexpected \['extra'\]"),
        (lambda s: s.update({"kernel.log_dt": torch.zeros(3)}), "do not make one S4D layer"),
        (lambda s: s.update({"kernel.C": torch.zeros(6, 8)}), r"kernel.C must be \(H, N/2, 2\)"),
    ],
)
def test_golden_import_refuses(change, message):
    from safetensors.torch import load_file

    state = {k: v for k, v in load_file(GOLDEN).items() if not k.startswith("__")}
    change(state)
    with pytest.raises(ValueError, match=message):
        s4.load_s4d_minimal(state)


@settings(max_examples=100, deadline=None)
@given(
    log_dt=st.floats(-20, 6),
    A_real=st.floats(-20, 15),
    A_imag=st.floats(-1e5, 1e5),
    decay=st.sampled_from(["exp", "relu", "sigmoid", "softplus"]),
    discretization=st.sampled_from(["zoh", "bilinear"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_stable_and_finite_for_every_parameter_value(log_dt, A_real, A_imag, decay, discretization, dtype):
    layer = S4D(1, 2, "lin", discretization=discretization, decay=decay, dtype=dtype)
    with torch.no_grad():
        layer.filter.log_dt.fill_(log_dt), layer.filter.A_real.fill_(A_real), layer.filter.A_imag.fill_(A_imag)
    exponent = layer.filter.system().exponent
    assert (exponent[..., 0] <= 0).all()  # |eigenvalue| <= 1
    y = layer(torch.randn(1, 50, 1, dtype=dtype))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_output_scale_at_init():
    # White noise in, C normal, orthonormal-like kernels: the state part's variance stays of the input's order.
    layer = S4D(256, 64)
    system = layer.filter.system()
    exponent, b, c = system.exponent, system.b, system.c
    assert 1e-3 < exponent[:, 0, 0].neg().div(0.5).min() < 2e-3
    assert 0.08 < exponent[:, 0, 0].neg().div(0.5).max() < 0.11
    assert math.isclose(c.square().mean().item(), 0.5, rel_tol=0.05)
    assert b.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "leg"}, "init='leg' is unknown; did you mean 'legs'"),
        ({"discretization": "zho"}, "did you mean 'zoh'"),
        ({"d_state": 7}, "even d_state of at least 2"),
        ({"d_state": 0, "init": "real"}, "d_state must be at least 1"),
        ({"dt_min": 0.1, "dt_max": 0.01}, "0 < dt_min <= dt_max"),
        ({"d_model": 0}, "d_model must be an integer of at least 1; got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        S4D(**({"d_model": 4, "d_state": 8} | options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s(torch.randn(2, 9, 4)), r"d_model=5; got shape \(2, 9, 4\)"),
        (lambda s: s(torch.randn(5)), r"u must be \(..., L, d_model\)"),
        (lambda s: s(torch.randn(2, 0, 5)), "at least one step"),
        (lambda s: s(torch.randn(2, 9, 5), torch.zeros(2, 5, 3, 2)), r"state must be \(2, 5, 4, 2\)"),
        (lambda s: s(torch.randn(2, 9, 5), lengths=torch.tensor([9, 10])), "lengths must be in 1 .. L=9; got 9 .. 10"),
        (lambda s: s(torch.randn(2, 9, 5), lengths=torch.tensor([0, 9])), "got 0 .. 9"),
        (lambda s: s(torch.randn(2, 9, 5), lengths=torch.tensor([9])), "one per sequence"),
        (lambda s: s(torch.randn(2, 9, 5), lengths=torch.tensor([1.0, 2.0])), "must be integers"),
        (lambda s: s(torch.randn(2, 9, 5), lengths=[9, 9]), "lengths must be an integer tensor; got list"),
        (lambda s: s.stepper()(torch.randn(2, 4), torch.zeros(2, 5, 4, 2)), r"u must be \(B, 5\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())


def test_a_stepper_is_a_snapshot():
    layer = build(dtype=torch.float64)
    u = torch.randn(2, 6, 5, dtype=torch.float64)
    before = layer(u).detach()
    stepper = layer.stepper()
    layer.reset_parameters()
    state, outputs = stepper.initial_state(2), []
    for t in range(6):
        y, state = stepper(u[:, t], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), before)


def test_lengths_of_small_integers():
    layer = build(dtype=torch.float64)
    u = torch.randn(2, 300, 5, dtype=torch.float64)
    expected = layer(u, lengths=torch.tensor([10, 120]), return_state=True)
    for dtype in (torch.uint8, torch.int8, torch.int32):
        found = layer(u, lengths=torch.tensor([10, 120], dtype=dtype), return_state=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rate_is_positive(rate):
    with pytest.raises(ValueError, match="rate must be above 0 and finite"):
        build()(torch.randn(1, 4, 5), rate=rate)
