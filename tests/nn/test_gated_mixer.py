"""The gated mixer and its block, against float64 sums over lags."""

import copy

import pytest
import torch
from tests.contracts import sequence_layer as contract

import milkweed as mw
from milkweed.nn import BlockDiagonalGlu, GatedMixer, GatedMixerBlock, ShortConv

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
# Both directions or one, the second convolution or not, the norm or not, and the kernel.
VARIANTS = [
    (True, True, False, "implicit"),
    (True, True, True, "implicit"),
    (False, True, False, "implicit"),
    (False, False, True, "explicit"),
    (True, False, False, "explicit"),
]


def mixer(variant, d_model=4, l_max=40, **options):
    bidirectional, residual, pre_norm, kernel = variant
    return GatedMixer(
        d_model,
        l_max,
        bidirectional=bidirectional,
        residual_long_conv=residual,
        pre_norm=pre_norm,
        kernel=kernel,
        **options,
    )


def literal_conv(conv, v):
    """y_t = sum over lags, one term at a time; v (B, L, D)."""
    length = v.shape[1]
    past, future = conv.filter(length)
    y = conv.skip * v
    for t in range(length):
        for s in range(length):
            if s <= t:
                y[:, t] = y[:, t] + past[:, t - s] * v[:, s]
            elif future is not None:
                y[:, t] = y[:, t] + future[:, s - t - 1] * v[:, s]
    return y


def literal_mixer(layer, u):
    """Step for step as the paper's public model has it, on (B, L, D)."""
    if layer.norm is not None:
        mean, variance = u.mean(-1, keepdim=True), u.var(-1, keepdim=True, correction=0)
        u = (u - mean) / (variance + 1e-5).sqrt() * layer.norm.weight + layer.norm.bias
    x = u @ layer.in_linear.weight.T + layer.in_linear.bias
    short = torch.zeros_like(x)
    for t in range(x.shape[1]):
        short[:, t] = layer.short_conv.bias
        for lag in range(min(t, 2) + 1):
            short[:, t] = short[:, t] + layer.short_conv.weight[:, 2 - lag] * x[:, t - lag]
    x1, x2, v = short.split(layer.d_model, -1)
    y = literal_conv(layer.long_conv, v * x1) * x2
    if layer.residual_conv is not None:
        y = y + literal_conv(layer.residual_conv, u)
    return y @ layer.out_linear.weight.T + layer.out_linear.bias


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_the_definition(variant):
    layer = mixer(variant).double()
    u = torch.randn(2, 17, 4, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(u)
    y, expected = layer(u), literal_mixer(layer, u)
    torch.testing.assert_close(y, expected, **TIGHT)
    wanted = [u, *layer.parameters()]
    found = torch.autograd.grad(y, wanted, cotangent)
    for each, truth in zip(found, torch.autograd.grad(expected, wanted, cotangent), strict=True):
        torch.testing.assert_close(each, truth, **TIGHT)


@pytest.mark.parametrize("length", [1, 2, 63, 101, 1000])
def test_lengths(length):
    layer = mixer(VARIANTS[0], d_model=3, l_max=1000).double()
    u = torch.randn(1, length, 3, dtype=torch.float64)
    if length <= 101:
        torch.testing.assert_close(layer(u), literal_mixer(layer, u), **TIGHT)
    else:  # the float32 layer against the float64 one, which shorter lengths tie to the definition
        single = copy.deepcopy(layer).float()(u.float())
        assert (single - layer(u)).abs().max() < 1e-5 * layer(u).abs().max()


def test_a_shorter_sequence_uses_the_first_lags():
    layer = mixer(VARIANTS[2]).double()
    u = torch.randn(1, 40, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(u[:, :13]), layer(u)[:, :13], **TIGHT)


def test_leading_dimensions_and_strides():
    layer = mixer(VARIANTS[0]).double()
    u = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    y = layer(u)
    torch.testing.assert_close(y[1, 2], layer(u[1, 2]), **TIGHT)
    strided = u.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    torch.testing.assert_close(layer(strided), y, **TIGHT)
    lengths = torch.tensor([[9, 4, 1], [2, 9, 7]])
    torch.testing.assert_close(layer(u, lengths=lengths)[1, 0, :2], layer(u[1, 0, :2]), **TIGHT)


def test_an_empty_batch():
    for variant in VARIANTS:
        assert mixer(variant)(torch.zeros(0, 9, 4)).shape == (0, 9, 4)


@pytest.mark.parametrize("variant", VARIANTS)
class TestContract:
    def test_causality(self, variant):
        u = torch.randn(7, 4, dtype=torch.float64)
        contract.check_causality(mixer(variant).double(), u[None], causal=not variant[0])

    def test_padding(self, variant):
        u = torch.randn(3, 12, 4, dtype=torch.float64)
        contract.check_padding(mixer(variant).double(), u, [12, 5, 1])

    def test_no_gradient_from_padding_is_nan(self, variant):
        layer = mixer(variant)
        u = torch.randn(2, 12, 4)
        u[1, 5:] = float("nan")
        y = layer(u.requires_grad_(), lengths=torch.tensor([12, 5]))
        y.square().mean().backward()
        for tensor in (y, u.grad, *(p.grad for p in layer.parameters())):
            assert tensor.isfinite().all()
        assert u.grad[1, 5:].abs().max() == 0

    @pytest.mark.sampled(2)
    def test_compiles_and_exports(self, variant):
        layer, u = mixer(variant, l_max=160), torch.randn(2, 33, 4)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u), layer(u))
        compiled(u).sum().backward()
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=128)}
        exported = torch.export.export(layer, (u,), dynamic_shapes=(dims,)).module()
        for shape in ((5, 100, 4), (3, 3, 4), (3, 2, 4)):
            contract.check_program(exported, layer, torch.randn(*shape))

    def test_autocast(self, variant):
        contract.check_autocast(mixer(variant, d_model=16, l_max=64))

    def test_copies(self, variant):
        contract.check_copies(mixer(variant))

    def test_meta(self, variant):
        contract.check_meta(lambda device: mixer(variant, device=device))

    def test_float32_gradients(self, variant):
        contract.check_float32_gradients(mixer(variant, l_max=300), 300, 1e-4)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v[0]])
def test_steps_equal_forward(variant):
    layer = mixer(variant).double()
    u = torch.randn(3, 21, 4, dtype=torch.float64)
    y = layer(u)
    for start in (0, 1, 2, 11):
        stepper = layer.stepper()
        state, outputs = stepper.initial_state(3), []
        if start:
            read, state = stepper.read(u[:, :start], state)
            outputs = list(read.unbind(1))
        for t in range(start, 21):
            y_t, state = stepper(u[:, t], state)
            outputs.append(y_t)
        torch.testing.assert_close(torch.stack(outputs, 1), y, **TIGHT)
        assert not any(out.requires_grad for out in outputs)


def test_a_stepper_keeps_its_parameters_and_leaves_states_alone():
    layer = mixer(VARIANTS[2]).double()
    u = torch.randn(2, 6, 4, dtype=torch.float64)
    stepper = layer.stepper()
    _, state = stepper.read(u[:, :3], stepper.initial_state(2))
    first, _ = stepper(u[:, 3], state)
    again, _ = stepper(u[:, 3], state)
    assert torch.equal(first, again)
    layer.reset_parameters()
    assert torch.equal(stepper(u[:, 3], state)[0], first)


def test_no_steps_into_the_future():
    with pytest.raises(ValueError, match="bidirectional"):
        mixer(VARIANTS[0]).stepper()
    with pytest.raises(ValueError, match="rate must be 1"):
        mixer(VARIANTS[2]).stepper(rate=2.0)


def test_the_short_convolution_is_a_cut_conv1d():
    layer, x = ShortConv(6).double(), torch.randn(2, 6, 11, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    expected = torch.nn.functional.conv1d(x, layer.weight[:, None], layer.bias, padding=2, groups=6)[..., :11]
    wanted = [x, layer.weight, layer.bias]
    found = torch.autograd.grad(layer(x), wanted, cotangent)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, wanted, cotangent))


def literal_glu(mlp, x):
    """Dense matrices with zeros outside the blocks."""
    up, down = (torch.block_diag(*layer.weight) for layer in (mlp.up, mlp.down))
    gate, hidden = (x @ up.T).chunk(2, -1)
    return (torch.nn.functional.gelu(gate) * hidden) @ down.T + mlp.down.bias


@pytest.mark.parametrize("rows", [(), (1,), (5,), (2, 3), (0,), (700,)])
def test_the_feed_forward_layer(rows):
    mlp = BlockDiagonalGlu(8, 16).double()
    x = torch.randn(*rows, 8, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), literal_glu(mlp, x), **TIGHT)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), literal_glu(mlp, x), **TIGHT)
    assert mlp.up.bias is None


@pytest.mark.parametrize(
    ("d_model", "d_hidden", "nblocks"), [(8, 16, 2), (8, 24, 4), (9, 15, 3), (10, 17, 4), (5, 6, 1)]
)
def test_the_feed_forward_layer_without_a_graph(d_model, d_hidden, nblocks):
    # One of these goes by rows, others cannot: the outputs are those that gradients are taken of.
    mlp = BlockDiagonalGlu(d_model, d_hidden, nblocks).double()
    x = torch.randn(1100, 2 * d_model, dtype=torch.float64)[:, ::2]
    expected = mlp(x)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(mlp(x), expected, **TIGHT)
            torch.testing.assert_close(torch.func.vmap(mlp)(x[:4]), expected[:4], **TIGHT)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert mlp.float()(x.float()).dtype == torch.bfloat16


def test_hooks_and_dropout_between_the_matrices_are_kept():
    mlp, x, seen = BlockDiagonalGlu(8, 16, dropout=0.5), torch.randn(700, 8), []
    hook = mlp.down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        mlp.eval()(x)
        assert seen[0].shape == (700, 16)
        hook.remove()
        assert not torch.equal(mlp.train()(x), mlp.eval()(x))
        with pytest.raises(ValueError, match="in_features=8"):
            mlp(torch.randn(3, 16))
        with pytest.raises(TypeError, match="cast x"):
            mlp(x.double())


@pytest.mark.parametrize("variant", [VARIANTS[1], VARIANTS[2]])
class TestBlock:
    def block(self, variant):
        bidirectional, residual, pre_norm, kernel = variant
        return GatedMixerBlock(
            4,
            40,
            nblocks=2,
            bidirectional=bidirectional,
            residual_long_conv=residual,
            pre_norm=pre_norm,
            kernel=kernel,
        )

    def test_values_and_gradients(self, variant):
        block = self.block(variant).double()
        u = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
        y = literal_mixer(block.mixer, u)
        y = y + literal_glu(block.mlp, y)
        centred = y - y.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()  # the norm's weights are 1 and 0
        torch.testing.assert_close(block(u), expected, **TIGHT)
        cotangent, wanted = torch.randn_like(u), [u, *(p for n, p in block.named_parameters() if "norm" not in n[:4])]
        found = torch.autograd.grad(block(u), wanted, cotangent)
        torch.testing.assert_close(found, torch.autograd.grad(expected, wanted, cotangent), **TIGHT)

    def test_padding(self, variant):
        contract.check_padding(self.block(variant).double(), torch.randn(3, 12, 4, dtype=torch.float64), [12, 5, 1])

    def test_compiles_copies_and_meta(self, variant):
        block = self.block(variant)
        u = torch.randn(2, 33, 4)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u), block(u))
        contract.check_copies(block)
        with torch.device("meta"):
            meta = self.block(variant)
        meta.to_empty(device="cpu").reset_parameters()
        assert meta(u).isfinite().all()

    def test_steps(self, variant):
        block, u = self.block(variant).double(), torch.randn(2, 9, 4, dtype=torch.float64)
        if variant[0]:
            with pytest.raises(ValueError, match="bidirectional"):
                block.stepper()
            return
        stepper = block.stepper()
        read, state = stepper.read(u[:, :4], stepper.initial_state(2))
        outputs = [*read.unbind(1)]
        for t in range(4, 9):
            y_t, state = stepper(u[:, t], state)
            outputs.append(y_t)
        torch.testing.assert_close(torch.stack(outputs, 1), block(u), **TIGHT)


def test_through_the_compiler_as_users_call_it():
    block = GatedMixerBlock(8, 32, bidirectional=True)
    u = torch.randn(2, 20, 8)
    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(compiled(u), block(u), rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(u)
    compiled(u).backward(cotangent)
    found = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    block(u).backward(cotangent)
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_what_is_decayed():
    groups = mw.nn.parameter_groups(GatedMixerBlock(8, 32), lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    block = GatedMixer(8, 32)
    assert decayed
    short = ShortConv(4)
    assert all(not g["weight_decay"] for g in mw.nn.parameter_groups(short, lr=1e-3, weight_decay=0.1))
    assert "weight" in short.parameter_roles()
    special = GatedMixer(8, 32, kernel_options={"filters": "special"})
    rates = {group["lr"] for group in mw.nn.parameter_groups(special, lr=0.5)}
    assert rates == {0.5, 1e-3, 1e-5}
    assert {group["lr"] for group in mw.nn.parameter_groups(block, lr=0.5)} == {0.5}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be at least 1"),
        ({"l_max": 0}, ValueError, "l_max must be at least 1"),
        ({"l_max": 3.5}, TypeError, "l_max must be an integer"),
        ({"bidirectional": "yes"}, TypeError, "bidirectional must be True or False"),
        ({"kernel": "implict"}, ValueError, "implicit"),
        ({"kernel_options": 3}, TypeError, "kernel_options must be a mapping"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        GatedMixer(**({"d_model": 4, "l_max": 8} | options))


def test_bad_inputs():
    layer = GatedMixer(4, 8)
    with pytest.raises(ValueError, match="d_model=4"):
        layer(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="l_max=8"):
        layer(torch.zeros(2, 9, 4))
    with pytest.raises(ValueError, match="l_max=8"):
        layer(torch.zeros(2, 0, 4))
    with pytest.raises(TypeError, match="cast u, or use autocast"):
        layer(torch.zeros(2, 5, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="lengths must be in 1"):
        layer(torch.zeros(2, 5, 4), lengths=torch.tensor([5, 6]))
