"""S4 under the sequence layers' contract, over basis × discretisation × direction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts import sequence_layer as contract
from torch.autograd import gradcheck

from milkweed import ssm
from milkweed.nn import S4

BASES = [*(name for name, basis in ssm.BASES.items() if basis.correction is not None), "hippo"]
LENGTHS = [1, 2, 63, 101]


def build(init="legs", discretization="bilinear", bidirectional=False, **kwargs):
    return S4(6, 8, init, discretization=discretization, bidirectional=bidirectional, **kwargs)


def unrolled(layer, u, rate=1.0):
    """The layer by its equations in complex128 over all conjugate pairs, step by step, with no code of its own."""
    copies = layer.d_model // layer.filter.n_ssm
    p = {name: value.detach() for name, value in layer.filter.named_parameters()}
    A = -torch.exp(p["A_real"]) + 1j * p["A_imag"]
    P, B = torch.view_as_complex(p["P"]), torch.view_as_complex(p["B"])
    C = torch.view_as_complex(p["C"])
    full = [torch.cat([x, x.conj()], -1) for x in (A, P, B, C)]
    A = torch.diag_embed(full[0]) - torch.einsum("rsn,rsm->snm", full[1], full[1].conj())
    A, B, C = A.repeat(copies, 1, 1), full[2].repeat(copies, 1), full[3]
    dt = torch.exp(p["log_dt"])[:, None, None] * rate
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    if layer.filter.discretization == "bilinear":
        back = torch.linalg.inv(eye - dt / 2 * A)
        a, b = back @ (eye + dt / 2 * A), (back @ (dt * B[..., None]))[..., 0]
    else:
        a = torch.linalg.matrix_exp(dt * A)
        b = torch.linalg.solve(A, (a - eye) @ B[..., None])[..., 0]

    def run(u, C):
        x = torch.zeros(u.shape[0], *B.shape, dtype=torch.complex128)
        outputs = []
        for t in range(u.shape[1]):
            x = torch.einsum("hmn,bhn->bhm", a, x) + b * u[:, t, :, None]
            outputs.append((C * x).sum(-1).real)
        return torch.stack(outputs, 1)

    readouts = []
    for channel in range(layer.filter.channels):
        y = run(u, C[channel])
        if layer.filter.bidirectional:
            later = run(u.flip(1), C[layer.filter.channels + channel]).flip(1)
            y = y + torch.cat([later[:, 1:], torch.zeros_like(later[:, :1])], 1)
        readouts.append(torch.nn.functional.gelu(y + p["D"][channel] * u))
    y = torch.cat(readouts, -1) @ layer.mix.output.weight.detach().T + layer.mix.output.bias.detach()
    return torch.nn.functional.glu(y, -1)


@pytest.mark.sampled
@pytest.mark.parametrize("init", BASES)
@pytest.mark.parametrize("discretization", ["bilinear", "zoh"])
@pytest.mark.parametrize("bidirectional", [False, True])
class TestContract:
    @pytest.fixture
    def layer(self, init, discretization, bidirectional):
        return build(init, discretization, bidirectional, dtype=torch.float64)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_equals_the_equations(self, layer, length):
        u = torch.randn(2, length, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(u), unrolled(layer, u), rtol=1e-9, atol=1e-9)

    def test_rate(self, layer):
        u = torch.randn(2, 20, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(u, rate=2.0), unrolled(layer, u, rate=2.0), rtol=1e-9, atol=1e-9)

    def test_steps_equal_forward(self, layer, bidirectional):
        if bidirectional:
            with pytest.raises(ValueError, match="a bidirectional S4 has no stepper"):
                layer.stepper()
            with pytest.raises(ValueError, match="a bidirectional S4 has no stepper and no state"):
                layer(torch.randn(1, 4, 6).double(), return_state=True)
        else:
            contract.check_steps_equal_forward(layer, torch.randn(2, 41, 6, dtype=torch.float64))

    def test_causality(self, layer, bidirectional):
        contract.check_causality(layer, torch.randn(1, 12, 6, dtype=torch.float64), causal=not bidirectional)

    def test_padding(self, layer):
        contract.check_padding(layer, torch.randn(3, 20, 6, dtype=torch.float64), [20, 7, 1])

    def test_finite(self, init, discretization, bidirectional):
        contract.check_finite(build(init, discretization, bidirectional), 1000)

    def test_float32_gradients(self, init, discretization, bidirectional):
        # The worst parameter is log dt, whose gradient is a sum over frequencies times lags that nearly cancels.
        layer = S4(4, 64, init, discretization=discretization, bidirectional=bidirectional)
        contract.check_float32_gradients(layer, 4096, 1e-3)

    def test_autocast(self, init, discretization, bidirectional):
        contract.check_autocast(build(init, discretization, bidirectional))

    def test_meta(self, init, discretization, bidirectional):
        contract.check_meta(lambda **kwargs: build(init, discretization, bidirectional, **kwargs))


@pytest.mark.parametrize("discretization", ["bilinear", "zoh"])
def test_all_parameters_have_gradients(discretization):
    layer = S4(2, 4, "legt", discretization=discretization, dtype=torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)
    u = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)

    def function(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

    assert gradcheck(function, (u, *values))


@pytest.mark.parametrize(("init", "bidirectional"), [("legs", False), ("fout", True)])
def test_compiles_and_exports(init, bidirectional):
    contract.check_compiles_and_exports(build(init, bidirectional=bidirectional))


def test_copies():
    contract.check_copies(build())


@pytest.mark.parametrize("options", [{"channels": 2}, {"n_ssm": 2}, {"channels": 2, "bidirectional": True, "n_ssm": 3}])
def test_heads_and_groups(options):
    layer = build(**options, dtype=torch.float64)
    u = torch.randn(2, 30, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(u), unrolled(layer, u), rtol=1e-9, atol=1e-9)
    if not layer.filter.bidirectional:
        contract.check_steps_equal_forward(layer, u)


def test_state_after_padded_sequences():
    layer = build(dtype=torch.float64)
    u, start = torch.randn(3, 20, 6, dtype=torch.float64), torch.randn(3, 6, 8, dtype=torch.float64)
    _, state = layer(u, start, lengths=torch.tensor([20, 7, 1]), return_state=True)
    for i, length in enumerate([20, 7, 1]):
        _, alone = layer(u[i : i + 1, :length], start[i : i + 1], return_state=True)
        torch.testing.assert_close(state[i], alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", ["softplus", "sigmoid", "relu"])
def test_every_parameterisation_starts_at_the_basis(decay):
    torch.manual_seed(0)
    plain = build(dtype=torch.float64)
    torch.manual_seed(0)
    other = build(decay=decay, dtype=torch.float64)
    u = torch.randn(1, 30, 6, dtype=torch.float64)
    torch.testing.assert_close(other(u), plain(u), rtol=1e-9, atol=1e-9)


def test_frozen_parameters():
    layer = build(frozen=["A", "P", "dt"])
    frozen = [name for name, p in layer.filter.named_parameters() if not p.requires_grad]
    assert frozen == ["log_dt", "A_real", "A_imag", "P"]
    layer(torch.randn(1, 5, 6)).sum().backward()
    assert layer.filter.B.grad is not None


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    log_dt=st.floats(-20, 5),
    size_of_imag=st.floats(-3, 5),
    size_of_P=st.floats(-3, 3),
    decay=st.sampled_from(["exp", "relu", "sigmoid", "softplus"]),
    discretization=st.sampled_from(["bilinear", "zoh"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_stable_for_every_parameter_value(seed, log_dt, size_of_imag, size_of_P, decay, discretization, dtype):
    layer = S4(2, 6, "legt", discretization=discretization, decay=decay, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.filter.A_real.uniform_(-15, 15, generator=generator)
        layer.filter.A_imag.normal_(std=10**size_of_imag, generator=generator)
        layer.filter.P.normal_(std=10**size_of_P, generator=generator)
        layer.filter.log_dt.fill_(log_dt)
        norm = torch.linalg.matrix_norm(layer.filter.system().a.double(), 2)
    # Not only the eigenvalues: no vector ever grows.
    assert (norm <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "lges"}, "did you mean 'legs'"),
        ({"init": "lmu"}, "not normal plus low rank"),
        ({"discretization": "zohh"}, "did you mean 'zoh'"),
        ({"d_state": 7}, "d_state must be even"),
        ({"rank": 0}, "needs rank >= 1"),
        ({"n_ssm": 4}, "n_ssm must divide d_model=6; got n_ssm=4"),
        ({"init": "hippo", "n_ssm": 3}, "n_ssm to be a multiple of 2"),
        ({"frozen": ["Q"]}, "frozen='Q' is unknown"),
        ({"channels": 0}, "channels must be an integer of at least 1"),
        ({"output": "none", "channels": 2}, "output='none' cannot mix"),
        ({"activation": "gleu"}, "did you mean 'gelu'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        S4(**({"d_model": 6, "d_state": 8} | options))


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), "2", None])
def test_steppers_check_their_rate(rate):
    with pytest.raises(ValueError, match="rate must be above 0 and finite"):
        build().stepper(rate)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (torch.zeros(2, 6, 8, device="meta"), ValueError, "on cpu for this u; got .* on meta"),
        (torch.zeros(2, 6, 8, dtype=torch.complex64), TypeError, "state must be a real tensor"),
        ([0.0], TypeError, "state must be a real tensor, from initial_state or an earlier call; got list"),
        (torch.zeros(2, 6, 7), ValueError, r"state must be \(2, 6, 8\)"),
    ],
)
def test_wrong_states(state, error, message):
    layer, u = build(), torch.randn(2, 4, 6)
    with pytest.raises(error, match=message):
        layer(u, state)
    with pytest.raises(error, match=message):
        layer.stepper()(u[:, 0], state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_wrong_dtype(dtype):
    with pytest.raises(TypeError, match=r"u must be torch\.float32 as the layer's parameters are"):
        build()(torch.ones(2, 4, 6, dtype=dtype))
