"""Adapters: added without a change, trained alone, merged and taken apart exactly, kept in files of their own."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.convert.families import batches, build, output
from torch import nn

import milkweed as mw
from milkweed.nn import AdaptedLinear, LowRankLinear, MonarchLinear
from milkweed.nn.structured_linear import ConcatLinear

CONFIG = mw.AdapterConfig(nblocks=2, rank=2, scale=0.5)
FAMILIES = ["bert", "gpt2"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24, bias=False), nn.Linear(24, 3))


def stirred(model):
    """Updates as after training, not zero."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            for parameter in module.update.parameters():
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def adapted_network(**kwargs):
    model = network()
    mw.add_adapters_(model, CONFIG, **kwargs)
    return stirred(model)


def train(model, batch, steps=3):
    optimizer = torch.optim.AdamW(mw.nn.parameter_groups(model, lr=0.01, weight_decay=0.1))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch)[0].square().mean() if isinstance(batch, dict) else model(batch).square().mean()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_way_of_an_adapter(family, tmp_path):
    model, batch = build(family), batches(family)[0]
    untouched, expected = copy.deepcopy(model), output(model, batch)
    names = mw.add_adapters_(model, mw.AdapterConfig(nblocks=4, rank=1))
    assert len(names) == {"bert": 12, "gpt2": 8}[family]
    assert torch.equal(output(model, batch), expected)
    assert all(".update." in name for name, p in model.named_parameters() if p.requires_grad)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, batch)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".update." in name}
    trained = output(model, batch)
    assert not torch.allclose(trained, expected, atol=1e-4)

    file = mw.save_adapters(model, tmp_path)
    assert file.stat().st_size < 60_000
    loaded = copy.deepcopy(untouched)
    assert mw.load_adapters_(loaded, tmp_path) == names
    assert torch.equal(output(loaded, batch), trained)

    merged = mw.merge_adapters_(model, keep=True)
    assert merged.names == names
    assert [type(m) for m in model.modules()] == [type(m) for m in untouched.modules()]
    torch.testing.assert_close(output(model, batch), trained, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "dense")  # transformers' own: a plain model of its architecture
    again = type(model).from_pretrained(tmp_path / "dense").eval()
    assert torch.equal(output(again, batch), output(model, batch))

    merged.unmerge_()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) or ".update." in name
    assert torch.equal(output(model, batch), trained)
    assert mw.remove_adapters_(model) == names
    assert torch.equal(output(model, batch), expected)
    assert list(model.state_dict()) == list(untouched.state_dict())


def test_one_block_is_lora():
    alpha, r = 8.0, 4
    linear = nn.Linear(10, 6)
    model = nn.Sequential(linear)
    mw.add_adapters_(model, mw.AdapterConfig(nblocks=1, rank=r, scale=alpha / r))
    update = stirred(model)[0].update
    (a,), (b,) = update.right, update.left
    assert a.shape == (r, 10)
    assert b.shape == (6, r)
    x = torch.randn(5, 10)
    expected = x @ linear.weight.T + linear.bias + alpha / r * (x @ a.T) @ b.T
    torch.testing.assert_close(model(x), expected)
    mw.merge_adapters_(model)
    torch.testing.assert_close(model[0].weight, linear.weight + alpha / r * b @ a)


def test_the_default_is_four_blocks_of_block_rank_four():
    model = nn.Sequential(nn.Linear(32, 64))
    mw.add_adapters_(model)
    right, left = model[0].update.parameters()
    assert right.shape == (4, 4, 8)
    assert left.shape == (4, 16, 4)
    assert not left.any()
    assert float(right.detach().var()) == pytest.approx(1 / (3 * 8), rel=0.5)
    # Of more ranks than a LoRA of as many parameters could have.
    rank = torch.linalg.matrix_rank(stirred(model)[0].update.to_linear().weight)
    assert rank > right.numel() / 32


def test_a_packed_layer_gets_three_updates():
    model = build("gpt2")
    mw.add_adapters_(model, {"re:.*c_attn": CONFIG})
    update = stirred(model).transformer.h[0].attn.c_attn.update
    assert isinstance(update, ConcatLinear)
    assert [part.out_features for part in update.parts] == [32, 32, 32]


def test_half_precision_keeps_its_update_in_float32():
    model = network().bfloat16()
    x = torch.randn(5, 24, dtype=torch.bfloat16)
    expected = model(x)
    mw.add_adapters_(model, CONFIG)
    assert {p.dtype for p in model[0].update.parameters()} == {torch.float32}
    assert torch.equal(model(x), expected)
    adapted = stirred(model)(x)
    mw.merge_adapters_(model)
    assert model[0].weight.dtype == torch.bfloat16
    assert (model(x).float() - adapted.float()).norm() < 0.02 * adapted.float().norm()
    double = network().double()
    mw.add_adapters_(double, CONFIG)
    assert {p.dtype for p in double[0].update.parameters()} == {torch.float64}


@pytest.mark.parametrize("config", [mw.MonarchConfig(4), mw.MonarchConfig(3, rank=1), mw.convert.LowRankConfig(3)])
def test_updates_merge_into_converted_layers(config, tmp_path):
    model, batch = build("gpt2"), batches("gpt2")[0]
    mw.convert_(model, {"re:.*(c_attn|mlp.c_fc)": config})
    before = {name: type(module) for name, module in model.named_modules()}
    mw.add_adapters_(model, mw.AdapterConfig(nblocks=4, rank=1, scale=0.5))
    trained = output(stirred(model), batch)
    adapted = copy.deepcopy(model.state_dict())
    merged = mw.merge_adapters_(model, keep=True)
    torch.testing.assert_close(output(model, batch), trained, rtol=1e-5, atol=1e-5)
    assert {name: type(module) for name, module in model.named_modules()} == before
    mw.save_pretrained(model, tmp_path)
    assert torch.equal(output(mw.load_pretrained(tmp_path).eval(), batch), output(model, batch))
    merged.unmerge_()
    assert all(torch.equal(value, adapted[name]) for name, value in model.state_dict().items())
    assert torch.equal(output(model, batch), trained)


def test_updates_without_their_structure_are_refused():
    small = mw.AdapterConfig(2)
    block = nn.Sequential(mw.nn.BlockDiagonalLinear(16, 16))
    mw.add_adapters_(block, small)
    with pytest.raises(
        ValueError, match=r"'0' cannot be merged: W is a BlockDiagonalLinear, .*densify_\(model\) first"
    ):
        mw.merge_adapters_(block)
    update = mw.nn.ButterflyLinear(16, 16, bias=False)
    model = nn.Sequential(AdaptedLinear(MonarchLinear(16, 16), update))
    with pytest.raises(ValueError, match=r"'0' cannot be merged: W is a MonarchLinear, and M a ButterflyLinear"):
        mw.merge_adapters_(model)
    shared = nn.Sequential(MonarchLinear(16, 16), MonarchLinear(16, 16))
    shared[1].right = shared[0].right
    mw.add_adapters_(shared, small)
    with pytest.raises(ValueError, match=r"'0' cannot be merged: its factors are tied to 1\.base"):
        mw.merge_adapters_(shared)


@pytest.mark.parametrize("packed", [False, True])
def test_packed_updates_of_one_matrix_and_the_reverse(packed):
    torch.manual_seed(0)
    parts = [MonarchLinear(32, 16, nblocks=4, rank=1, bias=False) for _ in range(3)]
    one = MonarchLinear(32, 48, nblocks=4, rank=1, bias=False)
    layer = AdaptedLinear(ConcatLinear(parts), one) if packed else AdaptedLinear(one, ConcatLinear(parts))
    model, x = nn.Sequential(layer), torch.randn(5, 32)
    expected = model(x)
    mw.merge_adapters_(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_adapters_on_converted_layers():
    model, batch = build("gpt2"), batches("gpt2")[0]
    mw.convert_(model, {"re:.*(c_attn|mlp.c_fc)": mw.MonarchConfig(3)})
    expected = output(model, batch)
    mw.add_adapters_(model, CONFIG)
    assert isinstance(model.transformer.h[0].mlp.c_fc.base, MonarchLinear)
    assert torch.equal(output(model, batch), expected)
    trained = output(stirred(model), batch)
    densified = mw.densify_(model)
    assert densified[0] == "transformer.h.0.attn.c_attn.base"
    assert {type(m.base).__name__ for m in model.modules() if isinstance(m, AdaptedLinear)} == {"Conv1D"}
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} <= {"update", "0", "1", "2"}
    torch.testing.assert_close(output(model, batch), trained, rtol=1e-4, atol=1e-5)
    mw.merge_adapters_(model)
    torch.testing.assert_close(output(model, batch), trained, rtol=1e-4, atol=1e-5)


def test_conversion_leaves_adapted_layers_alone():
    model = network()
    mw.add_adapters_(model, {"0": CONFIG})
    report = mw.convert_(model, {"re:.*": mw.MonarchConfig(1)})
    assert [line.name for line in report.converted] == ["2", "3"]
    assert "it has an adapter; merge it first" in report.layers[0].reason
    assert isinstance(model[0], AdaptedLinear)
    with pytest.raises(ValueError, match=r"nothing to convert.*it has an adapter"):
        mw.convert_(adapted_network(), mw.MonarchConfig(2))


def test_a_head_stays_trainable_and_is_saved_with_the_adapters(tmp_path):
    model = network()
    mw.add_adapters_(model, {"0": CONFIG}, train=["3", "re:.*0.bias"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "0.base.bias", "0.update.right", "0.update.left", "3.weight", "3.bias"
    ]  # fmt: skip
    x = torch.randn(4, 24)
    train(model, x)
    file = mw.save_adapters(model, tmp_path / "mine.safetensors")
    assert set(load_file(file)) == {"0.bias", "0.update.right", "0.update.left", "3.weight", "3.bias"}
    loaded = network()
    mw.load_adapters_(loaded, file)
    assert torch.equal(loaded(x), model(x))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_adding_in_two_steps():
    model = network()
    mw.add_adapters_(model, {"0": CONFIG})
    mw.add_adapters_(model, {"2": mw.AdapterConfig(1, 3)})
    assert sum(p.requires_grad for p in model.parameters()) == 4
    assert isinstance(model[2], AdaptedLinear)


def test_one_layer_under_two_names(tmp_path):
    shared = nn.Linear(24, 24)
    model = nn.Sequential(shared, nn.GELU(), shared)
    assert mw.add_adapters_(model, CONFIG) == ["0", "2"]
    assert model[0] is model[2]
    x = torch.randn(3, 24)
    expected = stirred(model)(x)
    mw.save_adapters(model, tmp_path)
    merged = mw.merge_adapters_(model, keep=True)
    assert model[0] is model[2]
    torch.testing.assert_close(model(x), expected)
    merged.unmerge_()
    mw.remove_adapters_(model)
    mw.load_adapters_(model, tmp_path)
    assert torch.equal(model(x), expected)


def test_the_way_back_only_if_asked():
    assert mw.merge_adapters_(adapted_network()).kept == []
    with pytest.raises(ValueError, match="keep=True"):
        mw.merge_adapters_(adapted_network()).unmerge_()


@pytest.mark.parametrize("place", ["", ".base", ".update"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "forward"])
def test_merging_refuses_layers_that_do_more(place, kind):
    # Such a hook sees W x and M x apart, or one of them; merged, it would see their sum, or be lost.
    model, x = adapted_network(), torch.randn(2, 24)
    layer = model.get_submodule(f"0{place}")
    if kind == "forward":
        plain = layer.forward
        layer.forward = lambda x: 3 * plain(x)
    else:
        getattr(layer, kind)(lambda _, inputs, *outputs: 3 * (outputs or inputs)[0])
    expected = model(x)
    with pytest.raises(
        ValueError, match=r"layer '0' cannot be merged: (it has hooks|its forward was replaced).*see other numbers"
    ):
        mw.merge_adapters_(model)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: layer.weight.mul_(2), "its weight changed"),
        (lambda layer: layer.bias.add_(100), "its bias changed"),
        (lambda layer: setattr(layer.weight, "data", torch.zeros(48, 24)), "its weight changed"),
        (lambda layer: setattr(layer, "bias", None), "its bias changed"),
        (lambda layer: setattr(layer, "bias", nn.Parameter(torch.zeros(48))), "its bias changed"),
        (lambda layer: layer.double(), "its weight changed"),
    ],
)
def test_unmerging_refuses_what_would_be_lost(change, message):
    model = adapted_network()
    merged = mw.merge_adapters_(model, keep=True)
    with torch.no_grad():
        change(model[0])
    with pytest.raises(ValueError, match=f"layer '0' cannot be unmerged: {message} after merging"):
        merged.unmerge_()
    assert type(model[0]) is nn.Linear
    assert type(model[2]) is nn.Linear


def test_unmerging_refuses_replaced_layers():
    model = adapted_network()
    merged = mw.merge_adapters_(model, keep=True)
    model[2] = nn.Linear(48, 24)
    with pytest.raises(ValueError, match="'2' was replaced after merging"):
        merged.unmerge_()


@pytest.mark.parametrize(("number", "dtype"), [(torch.nan, torch.float32), (1e4, torch.float16)])
def test_merging_refuses_a_sum_that_is_not_finite(number, dtype):
    model = network().to(dtype)
    mw.add_adapters_(model, CONFIG)
    with torch.no_grad():
        for parameter in model[2].update.parameters():
            parameter.fill_(number)
    with pytest.raises(ValueError, match=rf"layer '2' cannot be merged: .* NaN or infinite numbers in {dtype}"):
        mw.merge_adapters_(model)
    assert isinstance(model[0], AdaptedLinear)  # all of them or none


class TestMechanism:
    def test_copies_and_state(self):
        model, x = adapted_network(), torch.randn(5, 24)
        assert torch.equal(copy.deepcopy(model)(x), model(x))
        fresh = network()
        mw.add_adapters_(fresh, CONFIG)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), model(x))

    @pytest.mark.parametrize("family", [None, "gpt2"])
    def test_compiles_in_one_piece(self, family):
        if family is None:
            model, x = adapted_network(), torch.randn(5, 24)
        else:
            whole = build(family)
            mw.add_adapters_(whole, CONFIG)
            model, x = stirred(whole).transformer.h[0].attn.c_attn, torch.randn(2, 5, 32)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
        grads = [
            torch.autograd.grad(f(x).square().sum(), [p for p in model.parameters() if p.requires_grad])
            for f in (compiled, model)
        ]
        torch.testing.assert_close(*grads)

    def test_autocast(self):
        model, x = adapted_network(), torch.randn(5, 24)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        assert (y.float() - model(x)).norm() < 0.02 * model(x).norm()
        y.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing(self, reentrant):
        model, batch = build("bert"), batches("bert")[0]
        mw.add_adapters_(model, CONFIG)
        stirred(model)

        def gradients():
            model.zero_grad()
            model(**batch)[0].square().sum().backward()
            return [p.grad.clone() for p in model.parameters() if p.requires_grad]

        expected = gradients()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-5)

    def test_meta_device(self, tmp_path):
        with torch.device("meta"):
            model = network()
        mw.add_adapters_(model, CONFIG)
        assert all(p.is_meta for p in model.parameters())
        with pytest.raises(ValueError, match="meta device"):
            mw.save_adapters(model, tmp_path)
        model.to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        x = torch.randn(2, 24)
        expected = model(x)
        mw.remove_adapters_(model)
        assert torch.equal(model(x), expected)

    def test_modes(self):
        model = network().eval()
        mw.add_adapters_(model, CONFIG)
        merged = mw.merge_adapters_(model, keep=True)
        assert not any(m.training for m in model.modules())
        model.train()
        merged.unmerge_()
        assert all(m.training for m in model.modules())

    def test_save_pretrained_says_what_to_do(self, tmp_path):
        model = adapted_network()
        with pytest.raises(ValueError, match=r"save_adapters\(model, path\), or merge_adapters_\(model\) first"):
            mw.save_pretrained(model, tmp_path)
        mw.merge_adapters_(model)
        mw.save_pretrained(model, tmp_path)

    def test_the_layer_by_itself(self):
        layer = AdaptedLinear(nn.Linear(8, 6), LowRankLinear(8, 6, 2, bias=False), scale=2.0)
        x = torch.randn(3, 8)
        torch.testing.assert_close(layer(x), layer.base(x) + 2 * layer.update(x))
        assert "scale=2" in repr(layer)
        with pytest.raises(ValueError, match="out_features 5 and 6"):
            AdaptedLinear(nn.Linear(8, 6), LowRankLinear(8, 5, 2, bias=False))
        with pytest.raises(ValueError, match="no bias"):
            AdaptedLinear(nn.Linear(8, 6), LowRankLinear(8, 6, 2))
        with pytest.raises(ValueError, match="scale must be finite; got nan"):
            AdaptedLinear(nn.Linear(8, 6), LowRankLinear(8, 6, 2, bias=False), float("nan"))


class Int8Linear(nn.Linear):
    """A stand-in for quantised layers: packed integers, of another shape than the layer."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.step = linear.weight.detach().abs().max() / 127
        integers = (linear.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(integers.flatten(), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.view(self.out_features, -1) * self.step).T


def test_quantised_layers_are_adapted_but_not_merged(tmp_path):
    model = nn.Sequential(Int8Linear(nn.Linear(24, 12)), nn.Linear(12, 12))
    x = torch.randn(2, 24)
    expected = model(x)
    mw.add_adapters_(model, CONFIG)
    assert torch.equal(model(x), expected)
    train(model, x)
    mw.save_adapters(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"layer '0' cannot be merged: it is a Int8Linear.*leave the adapters unmerged"
    ):
        mw.merge_adapters_(model)
    trained = model(x)
    mw.remove_adapters_(model)
    mw.load_adapters_(model, tmp_path)
    assert torch.equal(model(x), trained)


def test_tied_weights_are_adapted_but_not_merged():
    model = build("gpt2")
    mw.add_adapters_(model, {"lm_head": CONFIG})
    assert model.lm_head.base.weight is model.transformer.wte.weight
    with pytest.raises(ValueError, match=r"'lm_head' cannot be merged: its weight is tied to transformer\.wte"):
        mw.merge_adapters_(model)


def test_layers_whose_weights_are_read_by_others():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 16))
    assert mw.add_adapters_(model, CONFIG) == ["1"]
    with pytest.raises(ValueError, match=r"'0\.linear1' cannot have an adapter: its parent TransformerEncoderLayer"):
        mw.add_adapters_(model, {"0.linear1": CONFIG})


@pytest.mark.parametrize(
    ("rules", "options", "error", "message"),
    [
        ({"re:.*attention": CONFIG}, {}, ValueError, "matches none of the 3 linear layers; near names"),
        ({"0": mw.AdapterConfig(nblocks=2, rank=13)}, {}, ValueError, r"layer '0' cannot have .*got rank=13"),
        ({"0": mw.MonarchConfig(2)}, {}, TypeError, r"such as AdapterConfig\(nblocks=4\)"),
        ({"re:.*": None}, {}, ValueError, "no layer can have an adapter"),
        (mw.MonarchConfig(2), {}, TypeError, "rules must map names"),
        (CONFIG, {"train": "re:("}, ValueError, r"train: 're:\(' is neither a name nor a well-formed 're:' pattern"),
        (CONFIG, {"train": ["3", 5]}, ValueError, "train: 5 is neither a name"),
        (CONFIG, {"train": None}, TypeError, "train must be a name, .*; got None"),
        (CONFIG, {"train": "classifier"}, ValueError, "train: rule 'classifier' matches none of the 8 modules and par"),
    ],
)
def test_refused(rules, options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        mw.add_adapters_(model, rules, **options)
    assert all(type(layer) is not AdaptedLinear for layer in model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("options", [{"nblocks": 0}, {"nblocks": 2.5}, {"nblocks": "4"}, {"rank": True}, {"rank": -1}])
def test_a_config_of_the_wrong_kind(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1 on; got {name}={value!r}"):
        mw.AdapterConfig(**options)


@pytest.mark.parametrize("scale", ["x", None, float("inf"), float("nan")])
def test_a_scale_of_the_wrong_kind(scale):
    with pytest.raises(ValueError, match=f"scale must be a finite number; got scale={scale!r}"):
        mw.AdapterConfig(scale=scale)


def test_refused_states(tmp_path):
    with pytest.raises(ValueError, match="layer '0' cannot have an adapter: it has an adapter already"):
        mw.add_adapters_(adapted_network(), CONFIG)
    for function in (mw.merge_adapters_, mw.remove_adapters_, lambda m: mw.save_adapters(m, tmp_path)):
        with pytest.raises(ValueError, match="Sequential has no adapters"):
            function(network())
    for layer in (nn.Linear(4, 4), MonarchLinear(4, 4, 2)):
        with pytest.raises(ValueError, match=r"put it into a torch\.nn\.Sequential"):
            mw.add_adapters_(layer, CONFIG)


class TestFiles:
    def saved(self, path):
        return mw.save_adapters(adapted_network(train="3"), path)

    def test_every_frozen_parameter_is_sampled(self, tmp_path):
        layers = [nn.Embedding(50, 24), *(nn.Linear(24, 24) for _ in range(8)), nn.LayerNorm(24)]
        model = nn.Sequential(*layers)
        other = copy.deepcopy(model)
        mw.add_adapters_(model, CONFIG, train="8.bias")
        file = mw.save_adapters(model, tmp_path)
        assert file.stat().st_size < 20_000 + 4 * 8 * 2 * 2 * 48
        mw.load_adapters_(copy.deepcopy(other), file)
        for name, parameter in other.named_parameters():
            changed = copy.deepcopy(other)
            changed.get_parameter(name).data += 0.1 * torch.randn_like(parameter)
            if name == "8.bias":
                mw.load_adapters_(changed, file)
                continue
            with pytest.raises(ValueError, match=f"'{name}' has other numbers there"):
                mw.load_adapters_(changed, file)

    def test_another_dtype_is_the_same_model(self, tmp_path):
        self.saved(tmp_path)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            mw.load_adapters_(network().to(dtype), tmp_path)

    @staticmethod
    def rewritten(file, change):
        with safe_open(file, "pt") as stored:
            tensors, metadata = load_file(file), stored.metadata()
        change(tensors, metadata)
        save_file(tensors, file, metadata)

    @pytest.mark.parametrize("key", ["3.weight", "3.bias"])
    def test_a_missing_head_is_named(self, key, tmp_path):
        self.rewritten(self.saved(tmp_path), lambda tensors, _: tensors.pop(key))
        model = network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=f"lists '{key}' as trained with the adapters, but does not hold it"):
            mw.load_adapters_(model, tmp_path)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_what_is_not_listed_is_refused(self, tmp_path):
        self.rewritten(self.saved(tmp_path), lambda tensors, _: tensors.update({"0.bias": torch.zeros(48)}))
        with pytest.raises(ValueError, match=r"does not list '0\.bias' as trained with the adapters, but holds it"):
            mw.load_adapters_(network(), tmp_path)

    def test_a_file_without_the_list_is_read_as_before(self, tmp_path):
        file = self.saved(tmp_path)
        self.rewritten(file, lambda _, metadata: metadata.pop("trained"))
        model = network()
        mw.load_adapters_(model, tmp_path)
        assert torch.equal(model[3].base.weight, load_file(file)["3.weight"])

    def test_on_a_model_without_numbers(self, tmp_path):
        self.saved(tmp_path)
        with torch.device("meta"):
            model = network()
        with pytest.raises(ValueError, match="meta device; load its own weights first"):
            mw.load_adapters_(model, tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: nn.Sequential(*m[:2]), "this Sequential has no linear layer '2'"),
            (lambda m: m.append(nn.Linear(3, 3)), "its 5 parameters have other names than the 7"),
            (lambda m: m.__setitem__(2, nn.Linear(48, 30, bias=False)), r"'2' has 48 inputs and 24 outputs.*48 and 30"),
            (lambda m: m[0].weight.data.mul_(1.001), "'0.weight' has other numbers there"),
            (lambda m: m.__setitem__(0, MonarchLinear(24, 48, 2)), "was one of them converted"),
            (lambda m: m[0].bias.data.add_(1), "'0.bias' has other numbers there"),
            (lambda m: m[2].weight.data.normal_(), "'2.weight' has other numbers there"),
        ],
    )
    def test_another_model(self, change, message, tmp_path):
        file = self.saved(tmp_path)
        model = network()
        changed = change(model)
        model = changed if isinstance(changed, nn.Module) else model
        types = [type(m) for m in model.modules()]
        with pytest.raises(ValueError, match=f"{file.name} was made for another model, a Sequential: .*{message}"):
            mw.load_adapters_(model, tmp_path)
        assert [type(m) for m in model.modules()] == types
        assert all(p.requires_grad for p in model.parameters())

    def test_on_top_of_the_same(self, tmp_path):
        self.saved(tmp_path)
        with pytest.raises(ValueError, match=r"it has an adapter already; .*remove_adapters_\(model\) first"):
            mw.load_adapters_(adapted_network(), tmp_path)

    def test_not_there_or_damaged(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"adapters\.safetensors does not exist"):
            mw.load_adapters_(network(), tmp_path)
        file = self.saved(tmp_path)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="corrupt or truncated"):
            mw.load_adapters_(network(), tmp_path)
        with pytest.raises(ValueError, match="was not written by save_adapters"):
            mw.load_adapters_(network(), mw.save_pretrained(network(), tmp_path))

    @pytest.mark.parametrize(
        ("key", "shape", "message"),
        [
            ("0.update.right", None, "(?s)do not fit their description.*Missing key"),
            ("0.update.right", (2, 2, 2), "(?s)do not fit their description.*size mismatch"),
            ("3.weight", (2, 2), r"holds '3.weight' of shape \(2, 2\); the model has \(3, 24\)"),
            ("4.weight", (2, 2), "holds '4.weight'.*no such parameter"),
        ],
    )
    def test_tensors_that_do_not_fit(self, key, shape, message, tmp_path):
        file = self.saved(tmp_path)
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        tensors = load_file(file)
        tensors.pop(key, None)
        if shape is not None:
            tensors[key] = torch.zeros(shape)
        save_file(tensors, file, metadata)
        model = network()
        with pytest.raises(ValueError, match=message):
            mw.load_adapters_(model, tmp_path)
        assert type(model[0]) is nn.Linear
        assert all(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("adapters", [], "the adapters in .* must be a list of one or more"),
            ("adapters", 0, r"the adapters\[0\] in .* must be a mapping with names, .*, scale; got \{\}"),
            ("names", [], r"the adapters\[0\]\['names'\] in .* must be a list of one or more; got \[\]"),
            ("names", "0", r"\['names'\] in .* must be a list of one or more; got '0'"),
            ("scale", "x", r"\['scale'\] in .* must be a finite number; got 'x'"),
            ("scale", float("nan"), r"\['scale'\] in .* must be a finite number; got nan"),
            ("in_features", float("inf"), r"\['in_features'\] in .* must be a whole number from 1 .*; got inf"),
            ("out_features", ["48"], r"\['out_features'\]\[0\] in .* must be a whole number"),
            ("layers", [{"name": "monarch"}] * 2, r"(?s)do not fit their description.*2 layers for 1 sizes"),
            ("samples", [], r"the base\['samples'\] in .* must be a mapping"),
            ("samples", {"zz": {"dtype": "torch.float32", "values": []}}, "has no parameter 'zz'"),
            ("samples", {"0.weight": {"dtype": "torch.int8", "values": []}}, "names a dtype 'torch.int8'"),
        ],
    )
    def test_descriptions_that_are_malformed(self, key, value, message, tmp_path):
        file = self.saved(tmp_path)
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        entries, base = json.loads(metadata["adapters"]), json.loads(metadata["base"])
        if key == "samples":
            base[key] = value
        elif key == "adapters":
            entries = [{}] if value == 0 else value
        else:
            entries[0][key] = value
        metadata |= {"adapters": json.dumps(entries), "base": json.dumps(base)}
        save_file(load_file(file), file, metadata)
        model = network()
        with pytest.raises(ValueError, match=message):
            mw.load_adapters_(model, tmp_path)
        assert type(model[0]) is nn.Linear

    @pytest.mark.parametrize("number", [torch.nan, torch.inf])
    def test_numbers_that_are_not_finite(self, number, tmp_path):
        model = adapted_network()
        with torch.no_grad():
            model[0].update.left[0, 0, 0] = number
        file = mw.save_adapters(model, tmp_path)
        with pytest.raises(ValueError, match=rf"{file.name} holds '0.update.left', .* with NaN, infinite"):
            mw.load_adapters_(network(), tmp_path)

    def test_numbers_of_eight_bits(self, tmp_path):
        file = mw.save_adapters(adapted_network(), tmp_path)
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        save_file({name: t.to(torch.float8_e4m3fn) for name, t in load_file(file).items()}, file, metadata)
        with pytest.raises(ValueError, match=rf"{file.name} holds '.*', torch.float8_e4m3fn, .* of 8 bits"):
            mw.load_adapters_(network(), tmp_path)
