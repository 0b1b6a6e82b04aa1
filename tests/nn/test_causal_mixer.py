"""The causal Monarch mixer: a long convolution at the start, causal wherever training leads."""

import copy
import math

import pytest
import torch
from tests.contracts import sequence_layer as contract
from torch import nn
from torch.autograd import gradcheck

import milkweed as mw
from milkweed.nn import CausalMonarchMixer

KINDS = ["kronecker", "bivariate", "chebyshev"]
kinds = pytest.mark.parametrize("kind", KINDS)
orders = pytest.mark.parametrize("order", [2, 3, 4])


def trained(layer, by=0.5):
    """The layer as training might leave it: factors away from the identity."""
    with torch.no_grad():
        for parameters in (layer.output_factors, layer.kernel_factors, layer.input_factors):
            for free in parameters:
                free.copy_(by * torch.randn_like(free) / math.sqrt(free.shape[-1]))
        if layer.kernel is not None:
            layer.kernel.normal_()
    return layer


def build(kind="kronecker", d_model=4, seq_len=50, **options):
    return CausalMonarchMixer(d_model, seq_len, kind, **options)


class Ramp(nn.Module):
    """A filter: lag j of channel h is w_h / (j + 1)."""

    def __init__(self, d_model, reverse=None, extra=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_model))
        self.reverse, self.extra = reverse, extra

    def reset_parameters(self):
        nn.init.normal_(self.weight)

    def forward(self, length):
        return self.weight[:, None] / torch.arange(1.0, length + 1 + self.extra), self.reverse


@orders
@pytest.mark.parametrize("length", [1, 2, 49, 50])
def test_starts_as_a_long_convolution(order, length):
    layer = build(order=order).double()
    u = torch.randn(2, length, 4, dtype=torch.float64)
    y = layer(u)
    for t in range(length):
        expected = layer.D * u[:, t] + sum(layer.kernel[:, t - s] * u[:, s] for s in range(t + 1))
        torch.testing.assert_close(y[:, t], expected, rtol=1e-10, atol=1e-10)


@kinds
@orders
def test_is_causal(kind, order):
    layer = trained(build(kind, order=order, seq_len=29, heads=2)).double()
    contract.check_causality(layer, torch.randn(1, 29, 4, dtype=torch.float64), causal=True)
    contract.check_causality(layer, torch.randn(1, 17, 4, dtype=torch.float64), causal=True)


@kinds
@orders
def test_a_prefix_gives_the_prefix_of_the_output(kind, order):
    layer = trained(build(kind, order=order, seq_len=113, heads=4)).double()
    u = torch.randn(2, 113, 4, dtype=torch.float64)
    y = layer(u)
    for length in (1, 2, 11, 12, 60, 112):
        torch.testing.assert_close(layer(u[:, :length]), y[:, :length], rtol=1e-9, atol=1e-10)


@kinds
@orders
@pytest.mark.parametrize("length", [1, 37])
def test_steps_equal_forward(kind, order, length):
    layer = trained(build(kind, order=order, seq_len=length, heads=2)).double()
    u = torch.randn(3, length, 4, dtype=torch.float64)
    y, stepper = layer(u), layer.stepper()
    state = stepper.initial_state(3)
    for t in range(length):
        y_t, state = stepper(u[:, t], state)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=f"has taken {length} steps and cannot take 1 more"):
        stepper(u[:, 0], state)
    state, start = stepper.initial_state(3), 0
    for size in (1, length // 2, length):  # a prompt, one that follows it, the rest
        if start < length:
            chunk = u[:, start : start + size]
            read, state = stepper.read(chunk, state)
            torch.testing.assert_close(read, y[:, start : start + size], rtol=1e-9, atol=1e-10)
            start += size


@kinds
def test_steps_in_float32(kind):
    layer = trained(build(kind, d_model=8, seq_len=200), 0.2)
    u, stepper = torch.randn(2, 200, 8), layer.stepper()
    y, state = layer(u), stepper.initial_state(2)
    steps = []
    for t in range(200):
        y_t, state = stepper(u[:, t], state)
        steps.append(y_t)
    assert (torch.stack(steps, 1) - y).norm() <= 1e-4 * y.norm()
    assert (y.double() - copy.deepcopy(layer).double()(u.double())).norm() <= 1e-4 * y.norm()


def test_a_stepper_keeps_its_parameters():
    layer, u = trained(build()), torch.randn(1, 4)
    stepper = layer.stepper()
    before, _ = stepper(u, stepper.initial_state(1))
    trained(layer)
    assert torch.equal(stepper(u, stepper.initial_state(1))[0], before)


@kinds
def test_padding(kind):
    layer = trained(build(kind, seq_len=30)).double()
    contract.check_padding(layer, torch.randn(3, 30, 4, dtype=torch.float64), [30, 1, 13])
    contract.check_finite(trained(build(kind, seq_len=30)), 30)


@kinds
def test_gradients(kind):
    layer = trained(build(kind, d_model=2, seq_len=5, heads=2)).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    u = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)

    def function(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

    assert gradcheck(function, (u, *values))
    contract.check_float32_gradients(trained(build(kind, seq_len=100), 0.2), 100, 1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "order"), [(kind, 2) for kind in KINDS] + [("kronecker", 4), ("chebyshev", 3)])
def test_compiles(kind, order):
    layer, u = trained(build(kind, order=order)), torch.randn(2, 33, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u), layer(u))
    wanted = torch.autograd.grad(layer(u).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(u).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.sampled
@kinds
@orders
def test_exports_with_a_dynamic_length(kind, order):
    contract.check_compiles_and_exports(trained(build(kind, order=order, seq_len=200)).double(), longest=200)


@pytest.mark.sampled(3)
@kinds
def test_compiles_with_a_dynamic_length(kind):
    layer = trained(build(kind, seq_len=120, heads=2)).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (33, 120, 2, 71, 1):
        u = torch.randn(3, length, 4, dtype=torch.float64, requires_grad=True)
        inputs, cotangent = [u, *layer.parameters()], torch.randn_like(u)
        torch.testing.assert_close(compiled(u), layer(u), rtol=1e-9, atol=1e-10)
        found = torch.autograd.grad(compiled(u), inputs, cotangent)
        expected = torch.autograd.grad(layer(u), inputs, cotangent)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        lengths = torch.tensor([length, 1, (length + 1) // 2])
        torch.testing.assert_close(compiled(u, lengths=lengths), layer(u, lengths=lengths), rtol=1e-9, atol=1e-10)


@kinds
def test_precision_copies_and_meta(kind):
    contract.check_autocast(trained(build(kind), 0.2))
    contract.check_copies(trained(build(kind)))
    contract.check_meta(lambda device: build(kind, device=device))


@pytest.mark.sampled
@kinds
@pytest.mark.parametrize("length", [1, 63, 251, 1000])
def test_sizes_and_shapes(kind, length):
    layer = trained(build(kind, d_model=6, seq_len=1000, heads=3), 0.1)
    u = torch.randn(2, length, 6)
    y = layer(u)
    assert y.dtype == u.dtype
    strided = u.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(layer(strided), y)
    torch.testing.assert_close(layer(u[0]), y[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(u.expand(2, 2, -1, -1)), y.expand(2, 2, -1, -1), rtol=1e-4, atol=1e-4)
    assert layer(u[:0]).shape == (0, length, 6)


def test_a_filter_gives_the_kernel():
    layer = build(filter=Ramp(4))
    assert layer.kernel is None
    plain = build()
    with torch.no_grad():
        plain.kernel.copy_(layer.filter(50)[0])
        plain.D.copy_(layer.D)
    u = torch.randn(2, 41, 4)
    torch.testing.assert_close(layer(u), plain(u))
    layer(u).square().sum().backward()
    assert layer.filter.weight.grad.abs().min() > 0
    before = layer.filter.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.filter.weight, before)


def test_with_the_implicit_filter():
    layer = trained(build(filter=mw.nn.ImplicitFilter(4, 50)), 0.2)
    u, stepper = torch.randn(2, 50, 4), layer.stepper()
    y, state = layer(u), stepper.initial_state(2)
    for t in range(50):
        y_t, state = stepper(u[:, t], state)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


def test_learns_a_map_that_is_no_convolution():
    """A random mixer of the same construction, which no kernel alone can copy."""
    teacher = trained(build(d_model=2, seq_len=36), 1.0)

    def error_after_training(frozen):
        layer = build(d_model=2, seq_len=36)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(not (frozen and "factors" in name))
        optimizer = torch.optim.Adam(mw.nn.parameter_groups(layer, lr=0.03))
        for _ in range(200):
            u = torch.randn(32, 36, 2)
            target = teacher(u).detach()
            loss = (layer(u) - target).square().mean() / target.var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert error_after_training(frozen=False) < 0.5 * error_after_training(frozen=True)


def test_in_a_block():
    block = mw.nn.ResidualBlock(trained(build()), 4).eval()
    u, stepper = torch.randn(2, 20, 4), block.stepper()
    y, state = stepper.read(u[:, :15], stepper.initial_state(2))
    for t in range(15, 20):
        y_t, state = stepper(u[:, t], state)
        y = torch.cat([y, y_t[:, None]], 1)
    torch.testing.assert_close(y, block(u), rtol=1e-4, atol=1e-4)
    assert repr(block.layer).startswith(
        "CausalMonarchMixer(\n  4, seq_len=50, construction='kronecker', order=2, heads=1"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build("kroneker"), ValueError, "construction='kroneker' is unknown; did you mean 'kronecker'"),
        (lambda: build(3), TypeError, "construction must be a string; got 3"),
        (lambda: build(order=1), ValueError, "order must be an integer of at least 2; got 1"),
        (lambda: build(heads=3), ValueError, "heads must divide d_model=4; got heads=3"),
        (lambda: build(seq_len=0), ValueError, "seq_len must be an integer of at least 1; got 0"),
        (lambda: build(seq_len=2.5), TypeError, "seq_len must be an integer; got 2.5"),
        (
            lambda: build(filter=torch.ones(3)),
            TypeError,
            "filter must be a module, .*, or None .*; got Tensor",
        ),
        (lambda: build()(torch.randn(2, 51, 4)), ValueError, r"1 to seq_len=50 steps; got shape \(2, 51, 4\)"),
        (lambda: build()(torch.randn(2, 5, 3)), ValueError, r"d_model=4; got shape \(2, 5, 3\)"),
        (lambda: build()(torch.ones(2, 5, 4).long()), TypeError, r"u must be real .*; got torch.int64; use u.float"),
        (
            lambda: build()(torch.randn(2, 5, 4), lengths=torch.tensor([6, 1])),
            ValueError,
            "lengths must be in 1 .. L=5",
        ),
        (lambda: build(filter=Ramp(4, torch.ones(4, 5)))(torch.randn(1, 5, 4)), ValueError, "filter must be causal"),
        (lambda: build(filter=Ramp(4, extra=1))(torch.randn(1, 5, 4)), ValueError, r"\(4, 5\); got \(4, 6\)"),
        (lambda: build().stepper(rate=2.0), ValueError, "rate must be 1 for a CausalMonarchMixer.*; got 2.0"),
        (lambda: build().stepper()(torch.randn(2, 3), None), ValueError, r"u must be \(B, 4\); got shape \(2, 3\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
