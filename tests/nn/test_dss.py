"""DSS: its softmax kernel against the literal row softmax, its exponential kernel against S4D's."""

import pytest
import torch
from tests.contracts import sequence_layer as contract
from torch.autograd import gradcheck

from milkweed import ssm
from milkweed.nn import S4D, S4ND

LENGTHS = [1, 2, 63, 1000]
SIGNS = {"decaying": [-1.0], "growing": [1.0], "both": [-1.0, 1.0], "undamped": [0.0]}


def reciprocal(x):
    return x.conj() / (x * x.conj() + 1e-7)


def literal(W, A, dt, length):
    """2 Re W diag(1/A) row-softmax(dt A k), with an array of N × L exponentials. W (..., H, N), A (H, N), dt (H,)."""
    P = (dt[:, None] * A)[..., None] * torch.arange(length)
    # The maximum over k, whose gradient torch.amax would spread over all k where Re A = 0.
    top = torch.where((A.real > 0)[..., None], P.real[..., -1:], P.real[..., :1])
    assert torch.equal(top, P.real.amax(-1, keepdim=True))
    S = torch.exp(P - top)
    S = S * reciprocal(S.sum(-1, keepdim=True))
    return 2 * torch.einsum("...hn,hnl->...hl", W * reciprocal(A), S).real


def draw(signs, modes=6, channels=3):
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(channels, modes, generator=generator, dtype=torch.float64)
    sign = torch.tensor(signs, dtype=torch.float64).repeat(modes)[:modes]
    A = torch.complex(size * sign, 20 * torch.randn(channels, modes, generator=generator, dtype=torch.float64))
    W = torch.randn(2, channels, modes, generator=generator, dtype=torch.complex128)
    dt = torch.logspace(-3, -1, channels, dtype=torch.float64)
    return [each.requires_grad_() for each in (W, A, dt)]


def computed(W, A, dt, length, **options):
    pairs = [torch.view_as_real(part) for part in (W, A, dt[:, None] * A)]
    return ssm.softmax_kernel(*pairs, length, **options)


def with_gradients(function, inputs, weights):
    value = function(*inputs)
    return value, *torch.autograd.grad((value * weights).sum(), inputs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("signs", SIGNS)
def test_values_and_gradients(signs, length):
    inputs = draw(SIGNS[signs])
    weights = torch.randn(2, 3, length, dtype=torch.float64)
    expected = with_gradients(lambda *args: literal(*args, length), inputs, weights)
    found = with_gradients(lambda *args: computed(*args, length), inputs, weights)
    for got, wanted in zip(found, expected, strict=True):
        # With one step there is nothing that dt could do.
        assert (got - wanted).abs().max() < 1e-10 * wanted.abs().max() + 1e-12 * (length == 1)
    if signs in ("decaying", "undamped"):
        assert torch.equal(computed(*inputs, length, growing=False), found[0])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-8, 0.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_modes_near_zero(sign, size, length):
    W, _, dt = draw([1.0], modes=2)
    A = torch.full((3, 2), sign * size * (1 + 0.5j), dtype=torch.complex128, requires_grad=True)
    weights = torch.randn(2, 3, length, dtype=torch.float64)
    expected = with_gradients(lambda *args: literal(*args, length), (W, A, dt), weights)
    found = with_gradients(lambda *args: computed(*args, length), (W, A, dt), weights)
    for got, wanted in zip(found, expected, strict=True):
        assert got.isfinite().all()
        # dt has no effect at A = 0, on a kernel that is then constant.
        assert (got - wanted).abs().max() <= 1e-9 * wanted.abs().max() + 1e-12 * expected[0].abs().max()


@pytest.mark.parametrize("signs", ["decaying", "growing"])
def test_it_is_a_softmax_but_for_the_regularisation(signs):
    W, A, dt = draw(SIGNS[signs])
    A = torch.complex(A.real, 0 * A.imag) + 0.1 * torch.sign(A.real)
    rows = torch.softmax((dt[:, None] * A.real)[..., None] * torch.arange(63), -1)
    expected = 2 * torch.einsum("rhn,hnl->rhl", W / A, rows.to(W)).real
    torch.testing.assert_close(computed(W, A, dt, 63), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [-1e3, -50.0, 50.0, 1e3])
def test_nothing_overflows_in_float32(rate):
    # Plain exponentials would be as large as exp(5e5).
    A = torch.tensor([[[rate, 3.0]]], requires_grad=True)
    kernel = ssm.softmax_kernel(torch.ones(1, 1, 2), A, A / 2, 1000)
    kernel.square().sum().backward()
    assert kernel.isfinite().all()
    assert A.grad.isfinite().all()
    expected = literal(torch.tensor([[1 + 1j]]), torch.view_as_complex(A.detach().double()), torch.tensor([0.5]), 1000)
    assert (kernel - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_pole_of_the_softmax():
    # exp(0) + exp(iπ) = 0: the regularised reciprocal of that is 0, or bounded by 1/(2 √1e-7) where it is not quite 0.
    A = torch.tensor([[[0.0, torch.pi]]], requires_grad=True)
    kernel = ssm.softmax_kernel(torch.ones(1, 1, 2), A, A, 2)
    kernel.sum().backward()
    assert kernel.abs().max() < 1e3
    assert A.grad.isfinite().all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("init", ["legs", "lin", "real"])
def test_dss_exp_is_zoh(init, length):
    layer = S4D(4, 8, init, discretization="zoh", dtype=torch.float64)
    A = -torch.exp(layer.filter.A_real.detach()).to(torch.complex128)
    C = layer.filter.C.detach()
    W = torch.complex(C[..., 0] / 2**0.5, 0 * C[..., 0]) if init == "real" else torch.view_as_complex(C)
    if init != "real":
        A = A + 1j * layer.filter.A_imag.detach()
    dt = torch.exp(layer.filter.log_dt.detach())[:, None]
    powers = torch.exp((dt * A)[..., None] * torch.arange(length))
    expected = 2 * torch.einsum("rhn,hnl->rhl", W * (torch.exp(dt * A) - 1) / A, powers).real
    torch.testing.assert_close(layer.filter.system().kernel(length), expected, rtol=1e-11, atol=1e-12)


def build(**options):
    return S4D(5, 8, **({"init": "lin", "discretization": "dss"} | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decay": "none"},
        {"decay": "none", "bidirectional": True, "channels": 2},
        {"init": "real"},
        {"b_init": "random", "dt_tie": False},
    ],
)
class TestLayer:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_equals_the_formula(self, options, length):
        layer = build(**options, dtype=torch.float64, activation="none")
        p = {name.removeprefix("filter."): value.detach() for name, value in layer.named_parameters()}
        if layer.filter.decay == "none":
            with torch.no_grad():
                layer.filter.A_real[:, ::2] *= -0.3
            p["A_real"] = layer.filter.A_real.detach()
        A = (-p["A_real"] if layer.filter.decay == "none" else -torch.exp(p["A_real"])).to(torch.complex128)
        W = p["C"][..., 0] / 2**0.5 + 0j if layer.filter.A_imag is None else torch.view_as_complex(p["C"])
        if layer.filter.A_imag is not None:
            A = A + 1j * p["A_imag"]
        if layer.filter.B is not None:
            W = W * torch.view_as_complex(p["B"])
        dt = torch.exp(p["log_dt"])
        if dt.ndim == 1:
            kernels = literal(W, A, dt, length)
        else:  # one step per mode: z = dt A for each
            kernels = sum(literal(W[..., n : n + 1], A[:, n : n + 1], dt[:, n], length) for n in range(dt.shape[1]))
        u = torch.randn(2, length, 5, dtype=torch.float64)
        y = []
        for channel in range(layer.filter.channels):
            past = kernels[channel]
            toeplitz = torch.zeros(5, length, length, dtype=torch.float64)
            for t in range(length):
                toeplitz[:, t, : t + 1] = past[:, : t + 1].flip(1)
                if layer.filter.bidirectional:
                    toeplitz[:, t, t + 1 :] = kernels[layer.filter.channels + channel][:, : length - 1 - t]
            y.append(torch.einsum("htj,bjh->bth", toeplitz, u) + p["D"][channel] * u)
        y = torch.cat(y, -1) @ p["mix.output.weight"].T + p["mix.output.bias"]
        expected = torch.nn.functional.glu(y, -1)
        torch.testing.assert_close(layer(u), expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.sampled(2)
    def test_all_parameters_have_gradients(self, options):
        layer = build(**options, dtype=torch.float64)
        names, values = zip(*layer.named_parameters(), strict=True)
        u = torch.randn(1, 6, 5, dtype=torch.float64)

        def function(*values):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

        assert gradcheck(function, values)

    @pytest.mark.sampled(2)
    def test_compiles_and_exports(self, options):
        contract.check_compiles_and_exports(build(**options))

    def test_autocast_and_meta(self, options):
        contract.check_autocast(build(**options))
        contract.check_meta(lambda **kwargs: build(**options, **kwargs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer, u: layer.stepper(), "S4D has no stepper .* depends on the sequence's length"),
        (
            lambda layer, u: layer(u, return_state=True),
            "no state to carry: its kernel depends on the sequence's length",
        ),
        (lambda layer, u: layer(u, torch.zeros(2, 5, 4, 2)), "no state to carry"),
        (lambda layer, u: layer(u, lengths=torch.tensor([9, 7])), "'dss' takes no padding.* L=9"),
    ],
)
def test_what_needs_a_fixed_kernel_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(build(), torch.randn(2, 9, 5))


def test_lengths_without_padding_are_taken():
    layer, u = build(), torch.randn(2, 9, 5)
    assert torch.equal(layer(u, lengths=torch.tensor([9, 9])), layer(u))


def test_along_the_axes_of_an_image():
    layer = S4ND(2, 2, 8, "lin", kind="s4d", axis_options={"discretization": "dss", "decay": "none"}, bandlimit=0.5)
    assert layer(torch.randn(1, 7, 5, 2)).isfinite().all()
