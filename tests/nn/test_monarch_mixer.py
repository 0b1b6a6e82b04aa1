"""The Monarch Mixer layer against its two equations, written with dense matrices in float64."""

import copy
import math

import pytest
import torch
from tests.contracts import sequence_layer as contract
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

import milkweed as mw
from milkweed.nn import MonarchMixer
from milkweed.nn.monarch_mixer import FourierChain

STARTS = ["dft", "hadamard", "random"]
starts = pytest.mark.parametrize("start", STARTS)
orders = pytest.mark.parametrize("order", [2, 3, 4])


def build(start="dft", d_model=8, seq_len=20, **options):
    return MonarchMixer(d_model, seq_len, start=start, **options)


def trained(layer, by=0.2):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += by * torch.randn_like(parameter)
    return layer


def dense_chain(factors, digits):
    """One factor after the other, each a sum over its own digit, as index loops. digits: the most significant first."""
    size = math.prod(digits)
    dense = torch.eye(size, dtype=factors[0].dtype)
    for stage, factor in enumerate(factors):
        position = len(digits) - 1 - stage
        step = torch.zeros(size, size, dtype=factor.dtype)
        for column in range(size):
            index = [column // math.prod(digits[a + 1 :]) % digits[a] for a in range(len(digits))]
            block = 0
            for a in (*range(position + 1, len(digits)), *range(position)):
                block = block * digits[a] + index[a]
            for value in range(digits[position]):
                row = 0
                for a in range(len(digits)):
                    row = row * digits[a] + (value if a == position else index[a])
                step[row, column] = factor[block, value, index[position]]
        dense = step @ dense
    return dense


def dense_fourier_chain(layer):
    digits = layer.digits[::-1]
    reversal = torch.arange(math.prod(digits)).view(layer.digits).permute(*range(len(digits) - 1, -1, -1)).flatten()
    factors = [torch.complex(f[..., 0], f[..., 1]).detach() for f in layer.factors]
    return dense_chain(factors, digits)[:, reversal.argsort()]


def dense_linear(layer):
    return dense_chain([f.detach() for f in layer.factors], layer.digits)[: layer.out_features, : layer.in_features]


def literal(layer, x):
    """Equations 2 and 3, the residual and the norm, for one sequence (L, d_model) of full length."""
    if layer.start == "dft":
        m1 = dense_fourier_chain(layer.m1)[:, : layer.seq_len]
        m2 = dense_fourier_chain(layer.m2)[: layer.seq_len]
        kernel = torch.complex(layer.kernel[..., 0], layer.kernel[..., 1])
        mixed = (m2 @ (kernel.T * (m1 @ x.to(m1.dtype)))).real
    else:
        mixed = dense_linear(layer.m2) @ (layer.kernel.T * (dense_linear(layer.m1) @ x))
    y = (dense_linear(layer.m4) @ F.gelu(dense_linear(layer.m3) @ mixed.T)).T
    return F.layer_norm(y + mixed, (layer.d_model,), layer.norm.weight, layer.norm.bias)


@starts
@orders
def test_is_the_two_equations(start, order):
    layer = trained(build(start, d_model=7, seq_len=13, order=order).double())
    x = torch.randn(2, 13, 7, dtype=torch.float64)
    y = layer(x)
    for i in range(2):
        torch.testing.assert_close(y[i], literal(layer, x[i]), rtol=1e-9, atol=1e-10)
    # A shorter sequence is one that zeros follow.
    torch.testing.assert_close(layer(x[:, :5]), layer(F.pad(x[:, :5], (0, 0, 0, 8)))[:, :5], rtol=1e-10, atol=1e-10)


@orders
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 63, 1000, 1009])
def test_fourier_chain_starts_exactly(order, inverse, size):
    digits = mw.structures.causal.balanced_digits(size, order)
    chain = FourierChain(digits, inverse, dtype=torch.float64)
    points = math.prod(digits)
    x = torch.randn(3, points, dtype=torch.complex128)
    expected = (torch.fft.ifft if inverse else torch.fft.fft)(x, norm="ortho")
    torch.testing.assert_close(chain(x), expected, rtol=1e-12, atol=1e-12)
    # p N^{1 + 1/p} numbers, with digits of N^{1/p}.
    assert sum(f.numel() for f in chain.factors) == 2 * points * sum(digits)
    assert points <= size * (1 + 1 / max(digits[0], 1)) + max(digits)


@orders
@pytest.mark.parametrize("length", [1, 2, 19, 20])
def test_starts_as_a_long_convolution(order, length):
    layer = build(order=order).double()
    layer.reset_parameters()  # drawn and transformed in float64
    kernel = torch.fft.ifft(torch.view_as_complex(layer.kernel.detach()))
    assert kernel[:, 20:].abs().max() < 1e-14  # over the past only
    x = torch.randn(2, length, 8, dtype=torch.float64)
    found = layer._mix_sequence(x.mT).mT
    for t in range(length):
        expected = sum(kernel.real[:, t - s] * x[:, s] for s in range(t + 1))
        torch.testing.assert_close(found[:, t], expected, rtol=1e-10, atol=1e-10)


@orders
def test_any_spectrum_is_a_circular_convolution(order):
    """Both directions, as the points are more than 2 L - 2; exact to the last digits of float64."""
    layer = build(order=order).double()
    layer.reset_parameters()
    points = layer.kernel.shape[1]
    kernel = torch.randn(8, points, dtype=torch.float64)
    with torch.no_grad():
        layer.kernel.copy_(torch.view_as_real(torch.fft.fft(kernel)))
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    found = layer._mix_sequence(x.mT).mT
    for t in range(20):
        expected = sum(kernel[:, (t - s) % points] * x[:, s] for s in range(20))
        torch.testing.assert_close(found[:, t], expected, rtol=1e-11, atol=1e-11)


@orders
def test_hadamard_starts(order):
    layer = build("hadamard", seq_len=16, order=order, feature_start="hadamard", activation="none").double()
    layer.reset_parameters()
    x = torch.randn(3, 16, 8, dtype=torch.float64)
    # M₄ M₃ is the identity, and M₂ M₁ with a spectrum of ones.
    with torch.no_grad():
        layer.kernel.fill_(1)
    torch.testing.assert_close(layer(x), F.layer_norm(2 * x, (8,)), rtol=1e-12, atol=1e-12)
    hadamard = torch.tensor([[(-1.0) ** (i & j).bit_count() / 4 for j in range(16)] for i in range(16)]).double()
    torch.testing.assert_close(layer.m1(x.mT), x.mT @ hadamard, rtol=1e-12, atol=1e-12)


@starts
def test_sees_past_and_future_once_trained(start):
    layer = trained(build(start, seq_len=11)).double()
    contract.check_causality(layer, torch.randn(1, 11, 8, dtype=torch.float64), causal=False)


@starts
def test_padding(start):
    layer = trained(build(start).double())
    contract.check_padding(layer, torch.randn(3, 20, 8, dtype=torch.float64), [20, 1, 13])


@pytest.mark.sampled
@starts
def test_gradients(start):
    layer = trained(build(start, d_model=3, seq_len=4).double())
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(function, (x, *values))
    contract.check_float32_gradients(build(start, seq_len=100), 100, 1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("start", "order"), [("dft", 2), ("dft", 3), ("random", 2)])
def test_compiles(start, order):
    layer, x = trained(build(start, order=order)), torch.randn(2, 17, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    wanted = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@starts
def test_precision(start):
    layer, x = build(start), torch.randn(2, 20, 8)
    exact = copy.deepcopy(layer).double()(x.double())
    y = layer(x)
    assert (y.double() - exact).norm() <= 1e-5 * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert half.dtype == torch.float32
    assert (half.double() - exact).norm() <= 0.03 * exact.norm()
    half.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert all(not tensor.is_complex() for tensor in layer.state_dict().values())


@starts
def test_copies_and_meta(start):
    contract.check_copies(build(start))
    contract.check_meta(lambda device: build(start, device=device, feature_start="hadamard"))
    with torch.device("meta"):
        layer = build(start)
    torch.manual_seed(3)
    layer.to_empty(device="cpu").reset_parameters()
    torch.manual_seed(3)
    same = build(start)
    same.reset_parameters()
    torch.manual_seed(3)
    layer.reset_parameters()
    x = torch.randn(2, 20, 8)
    torch.manual_seed(3)
    same.reset_parameters()
    assert torch.equal(layer(x), same(x))


@starts
@pytest.mark.parametrize("length", [1, 63, 251, 1000])
def test_sizes_and_shapes(start, length):
    layer = build(start, seq_len=1000)
    x = torch.randn(2, length, 8)
    y = layer(x)
    assert y.shape == x.shape
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(layer(strided), y)
    torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-4, atol=1e-4)
    assert layer(x[:0]).shape == (0, length, 8)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_nothing_is_quadratic(order):
    """Parameters, which are also the multiply-adds per channel and per step: L^{1 + 1/p} and H^{1 + 1/p}."""
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for n, p in MonarchMixer(8, 4**s, order).named_parameters() if n[:2] in {"m1", "m2"})
            for s in (6, 11)
        ]
        features = [
            sum(p.numel() for n, p in MonarchMixer(4**s, 8, order).named_parameters() if n[:2] in {"m3", "m4"})
            for s in (6, 11)
        ]
    for first, second in (sizes, features):
        assert abs(math.log(second / first, 4) / 5 - (1 + 1 / order)) < 0.04


def test_trains_in_a_network():
    """A shift by three steps, which needs the sequence axis, of products of features, which need the other one."""
    torch.manual_seed(1)
    model = nn.Sequential(build(d_model=8, seq_len=16), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(mw.nn.parameter_groups(model, lr=0.01))
    losses = []
    for _ in range(300):
        x = torch.randn(32, 16, 8)
        target = F.pad(x[:, :-3, :2], (0, 0, 3, 0)) * 2
        loss = (model(x) - target).square().mean() / target.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_in_a_block():
    block = mw.nn.ResidualBlock(build(), 8)
    block(torch.randn(2, 20, 8), lengths=torch.tensor([20, 3])).sum().backward()
    with pytest.raises(TypeError, match="MonarchMixer cannot run step by step"):
        block.stepper()
    assert "8, seq_len=20, order=2, start='dft', feature_start='random', activation='gelu'" in repr(block.layer)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build("fft"), ValueError, "start='fft' is unknown; did you mean 'dft'"),
        (lambda: build(feature_start="dft"), ValueError, "feature_start='dft' is unknown. Known: hadamard, random"),
        (lambda: build(activation="gleu"), ValueError, "activation='gleu' is unknown; did you mean 'gelu'"),
        (lambda: build(order=1), ValueError, "order must be an integer of at least 2; got 1"),
        (lambda: build(seq_len=0), ValueError, "seq_len must be an integer of at least 1; got 0"),
        (lambda: build(d_model=8.0), TypeError, "d_model must be an integer; got 8.0"),
        (lambda: build(d_model=12, feature_start="hadamard"), ValueError, "power of two; got 12; the nearest is 16"),
        (lambda: build()(torch.randn(2, 21, 8)), ValueError, r"1 to seq_len=20 steps; got shape \(2, 21, 8\)"),
        (lambda: build()(torch.randn(2, 5, 3)), ValueError, r"d_model=8; got shape \(2, 5, 3\)"),
        (lambda: build()(torch.ones(2, 5, 8).long()), TypeError, r"x must be real .*; got torch.int64; use x.float"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
