"""LongConv against sums over lags in float64, and under the sequence layers' contract."""

import copy

import pytest
import torch
from tests.contracts import sequence_layer as contract
from torch.autograd import gradcheck

from milkweed.nn import LongConv

GRID = [(kernel, bidirectional) for kernel in ("implicit", "explicit") for bidirectional in (False, True)]


def build(kernel="implicit", bidirectional=False, l_max=50, **kwargs):
    return LongConv(5, l_max, kernel=kernel, bidirectional=bidirectional, width=8, **kwargs)


def literal(layer, u, pre_gate=None, post_gate=None):
    """Sums over lags of what the filter gives, step by step. (B, L, D) float64."""
    length = u.shape[1]
    kernel, reverse = (None if k is None else k.detach() for k in layer.filter(length))
    v = u if pre_gate is None else u * pre_gate
    y = layer.skip.detach() * v
    for t in range(length):
        for s in range(length):
            if s <= t:
                y[:, t] += kernel[:, t - s] * v[:, s]
            elif reverse is not None:
                y[:, t] += reverse[:, s - t - 1] * v[:, s]
    return y if post_gate is None else y * post_gate


@pytest.mark.parametrize(("kernel", "bidirectional"), GRID)
class TestContract:
    @pytest.fixture
    def layer(self, kernel, bidirectional):
        return build(kernel, bidirectional, dtype=torch.float64)

    @pytest.mark.parametrize("length", [1, 2, 31, 50])
    def test_equals_the_sums(self, layer, length):
        u, before, after = (torch.randn(2, length, 5, dtype=torch.float64) for _ in range(3))
        torch.testing.assert_close(layer(u), literal(layer, u), rtol=1e-10, atol=1e-10)
        gated = layer(u, pre_gate=before, post_gate=after)
        torch.testing.assert_close(gated, literal(layer, u, before, after), rtol=1e-10, atol=1e-10)

    def test_both_layouts_are_one(self, layer):
        u, before, after = (torch.randn(2, 5, 30, dtype=torch.float64) for _ in range(3))
        y = layer(u.mT, pre_gate=before.mT, post_gate=after.mT)
        torch.testing.assert_close(layer.convolve(u, pre_gate=before, post_gate=after).mT, y)

    def test_leading_dimensions(self, layer):
        u = torch.randn(3, 2, 20, 5, dtype=torch.float64)
        torch.testing.assert_close(layer(u)[1], layer(u[1]))
        torch.testing.assert_close(layer(u[0, 0]), layer(u)[0, 0])
        assert layer(u[:0]).shape == (0, 2, 20, 5)

    def test_steps_equal_forward(self, layer, bidirectional):
        if bidirectional:
            with pytest.raises(ValueError, match="depends on the future"):
                layer.stepper()
            with pytest.raises(ValueError, match="depends on the future"):
                layer(torch.randn(1, 4, 5).double(), return_state=True)
        else:
            contract.check_steps_equal_forward(layer, torch.randn(2, 41, 5, dtype=torch.float64), same_states=False)

    def test_causality(self, layer, bidirectional):
        contract.check_causality(layer, torch.randn(1, 12, 5, dtype=torch.float64), causal=not bidirectional)

    def test_padding(self, layer):
        contract.check_padding(layer, torch.randn(3, 20, 5, dtype=torch.float64), [20, 7, 1])

    def test_padding_of_gates(self, layer):
        u, before, after = (torch.randn(2, 20, 5, dtype=torch.float64) for _ in range(3))
        alone = layer(u[1:, :7], pre_gate=before[1:, :7], post_gate=after[1:, :7])
        for tensor in (u, before, after):
            tensor[1, 7:] = float("nan")
        y = layer(u, pre_gate=before, post_gate=after, lengths=torch.tensor([20, 7]))
        torch.testing.assert_close(y[1, :7], alone[0], **contract.TIGHT)

    def test_finite(self, kernel, bidirectional):
        layer = build(kernel, bidirectional, l_max=1000)
        u = torch.randn(2, 1000, 5)
        u[1, 500:] = float("nan")
        y = layer(u.requires_grad_(), lengths=torch.tensor([1000, 500]))
        assert y.isfinite().all()
        y.square().mean().backward()
        assert all(tensor.grad.isfinite().all() for tensor in (u, *layer.parameters()))

    def test_float32_gradients(self, kernel, bidirectional):
        # Measured: 9e-6 in the worst parameter, in a filter's network, whose sines have a frequency of 10.
        contract.check_float32_gradients(build(kernel, bidirectional, l_max=4096), 4096, 1e-4)

    def test_autocast(self, kernel, bidirectional):
        contract.check_autocast(build(kernel, bidirectional))

    def test_meta(self, kernel, bidirectional):
        contract.check_meta(lambda **kwargs: build(kernel, bidirectional, **kwargs))

    def test_copies(self, kernel, bidirectional):
        contract.check_copies(build(kernel, bidirectional))

    @pytest.mark.sampled
    def test_compiles_and_exports(self, kernel, bidirectional):
        contract.check_compiles_and_exports(build(kernel, bidirectional, l_max=200), longest=200)

    @pytest.mark.sampled
    @pytest.mark.parametrize("gates", [False, True])
    def test_all_parameters_have_gradients(self, layer, gates):
        names, values = zip(*layer.named_parameters(), strict=True)
        u, before, after = (torch.randn(1, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))

        def function(u, before, after, *values):
            named = dict(zip(names, values, strict=True))
            options = {"pre_gate": before, "post_gate": after} if gates else {}
            return torch.func.functional_call(layer, named, (u,), options)

        assert gradcheck(function, (u, before, after, *values))


@torch.no_grad()
def test_compiles_with_lengths_and_state():
    layer = build()
    u, lengths = torch.randn(2, 40, 5), torch.tensor([40, 7])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, state = compiled(u, lengths=lengths, return_state=True)
    expected, expected_state = layer(u, lengths=lengths, return_state=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tuple(state), tuple(expected_state))
    assert state.due is None
    torch.testing.assert_close(compiled(u[:, :9], state), layer(u[:, :9], expected_state))


def test_chunks_with_gates_and_gradients():
    layer = build(dtype=torch.float64, l_max=100)
    u, before, after = (torch.randn(2, 100, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    leaves = (u, before, after, *layer.parameters())
    y = layer(u, pre_gate=before, post_gate=after)
    cotangent = torch.randn_like(y)
    state, chunks = None, []
    for piece in (slice(0, 33), slice(33, 34), slice(34, 97), slice(97, 100)):
        gates = {"pre_gate": before[:, piece], "post_gate": after[:, piece]}
        chunk, state = layer(u[:, piece], state, **gates, return_state=True)
        chunks.append(chunk)
    chunked = torch.cat(chunks, 1)
    torch.testing.assert_close(chunked, y, **contract.TIGHT)
    expected = torch.autograd.grad(y, leaves, cotangent)
    torch.testing.assert_close(torch.autograd.grad(chunked, leaves, cotangent), expected, **contract.TIGHT)


def test_prompts_of_several_lengths():
    layer = build(dtype=torch.float64, l_max=120)
    u, after = (torch.randn(3, length, 5, dtype=torch.float64) for length in (70, 50))
    lengths = [70, 7, 33]
    y, state = layer(u, lengths=torch.tensor(lengths), return_state=True)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(y[i, :length], layer(u[i : i + 1, :length])[0], **contract.TIGHT)
    stepper, outputs = layer.stepper(), []
    for t in range(50):
        y_t, state = stepper(after[:, t], state)
        outputs.append(y_t)
    for i, length in enumerate(lengths):
        alone = layer(torch.cat([u[i, :length], after[i]])[None])[0, length:]
        torch.testing.assert_close(torch.stack(outputs, 1)[i], alone, **contract.TIGHT)


def test_squash():
    layer = build("explicit", True, squash=1e-3, dtype=torch.float64)
    k = layer.filter.kernel.detach()
    expected = torch.where(k.abs() > 1e-3, k - 1e-3 * k.sign(), torch.zeros_like(k))
    found = layer.kernels(20)
    torch.testing.assert_close(found[0], expected[:, :20])
    assert (found[0] == 0).any()
    assert (found[0] != 0).any()
    assert found[1].shape == (5, 20)
    implicit = build(squash=0.01)
    torch.testing.assert_close(implicit.kernels()[0], torch.nn.functional.softshrink(implicit.filter()[0], 0.01))


def test_kernel_dropout():
    layer = build("explicit", l_max=4000, kernel_dropout=0.25)
    kernel = layer.kernels()[0]
    kept = kernel != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(kernel[kept], layer.filter.kernel[kept] / 0.75)
    # Neither evaluation nor stepping drops anything.
    u = torch.randn(1, 3, 5)
    stepper = layer.stepper()
    y = stepper.read(u, stepper.initial_state(1))[0]
    assert layer.training
    layer.eval()
    assert torch.equal(layer.kernels()[0], layer.filter.kernel)
    torch.testing.assert_close(y, layer(u))


def test_a_stepper_keeps_its_parameters():
    layer = build("explicit", dtype=torch.float64)
    u = torch.randn(2, 5, dtype=torch.float64)
    stepper = layer.stepper()
    y = stepper(u, stepper.initial_state(2))[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(stepper(u, stepper.initial_state(2))[0], y)
    assert not y.requires_grad


def test_skip_starts_random():
    layer = LongConv(4000, 4, kernel="explicit")
    assert layer.skip.std().item() == pytest.approx(1, rel=0.05)
    assert abs(layer.skip.mean().item()) < 0.1


def test_special_rates_reach_the_filter():
    assert copy.deepcopy(build(filters="special")).filter.parameter_settings()
    assert copy.deepcopy(build("explicit", filters="special")).filter.parameter_settings()
    assert not build().filter.parameter_settings()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": "implicitt"}, ValueError, "did you mean 'implicit'"),
        ({"kernel": None}, TypeError, "kernel must be a string"),
        ({"squash": -1.0}, ValueError, "squash must be at least 0"),
        ({"kernel_dropout": 1.0}, ValueError, "kernel_dropout must be in"),
        ({"l_max": 0}, ValueError, "l_max must be"),
        ({"filters": "none"}, ValueError, "filters='none' is unknown"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be True or False"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        LongConv(**{"d_model": 4, "l_max": 10} | options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer: layer(torch.randn(2, 9, 4)), ValueError, "d_model=5; got shape"),
        (lambda layer: layer(torch.randn(2, 51, 5)), ValueError, "1 to l_max=50 steps.*larger l_max"),
        (lambda layer: layer(torch.randn(2, 0, 5)), ValueError, "1 to l_max=50 steps"),
        (lambda layer: layer(torch.randn(2, 9, 5).double()), TypeError, "u must be torch.float32"),
        (lambda layer: layer(torch.randn(2, 9, 5), pre_gate=torch.randn(2, 9, 1)), ValueError, "pre_gate must have"),
        (lambda layer: layer(torch.randn(2, 9, 5), lengths=torch.tensor([10, 1])), ValueError, "lengths must be in"),
        (
            lambda layer: layer(torch.randn(2, 9, 5), layer.stepper().initial_state(2), lengths=torch.tensor([9, 1])),
            ValueError,
            "lengths cannot go with a state",
        ),
        (lambda layer: layer(torch.randn(2, 9, 5), torch.zeros(2)), TypeError, "state must be from"),
        (
            lambda layer: layer(torch.randn(2, 9, 5), layer.stepper().initial_state(3)),
            ValueError,
            "state must be of 2 sequences",
        ),
        (
            lambda layer: layer(torch.randn(2, 20, 5), layer(torch.randn(2, 31, 5), return_state=True)[1]),
            ValueError,
            "at most l_max=50 steps; 31 were taken, and 20 more",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(build())
