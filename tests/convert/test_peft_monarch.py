"""The Monarch adapter as a method of PEFT: everything that LoRA does there, and LoRA itself with one block."""

import copy

import pytest
import torch
from tests.convert.peft_models import (
    QUIET,
    adapted,
    build,
    converted,
    dense_twin,
    output,
    peft,
    stirred,
    trained,
)
from torch import nn

import milkweed as mw
from milkweed.nn import BlockDiagonalLinear, ButterflyLinear, ConcatLinear, LowRankLinear, MonarchLinear

transformers = pytest.importorskip("transformers")
pytestmark = QUIET
CONFIG = mw.MonarchAdapterConfig
OPTIONS = {
    "plain": {},
    "dropout": {"lora_dropout": 0.3},
    "rank-stabilised": {"r": 2, "use_rslora": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {"intermediate.dense|c_fc": 2}, "alpha_pattern": {"query|c_proj": 16}},
    "bias": {"bias": "all"},
}


def monarch(**options):
    return CONFIG(**{"nblocks": 4, "r": 1, "target_modules": "all-linear", **options})


def model_of(family, kind):
    model, batch = converted(family)
    return (model if kind == "structured" else build(family)), batch


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["dense", "structured"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
def test_the_way_of_an_adapter(family, kind, options, tmp_path):
    model, batch = model_of(family, kind)
    expected, before = output(model, batch), copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, monarch(**OPTIONS[options]))
    assert torch.equal(output(tuned.eval(), batch), expected)
    trained(tuned.train(), batch)
    after = output(tuned.eval(), batch)
    assert not torch.allclose(after, expected, atol=1e-4)
    tuned.save_pretrained(tmp_path)
    fresh = model_of(family, kind)[0]
    again = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.equal(output(again, batch), after)
    with tuned.disable_adapter():
        assert options == "bias" or torch.equal(output(tuned, batch), expected)
    tuned.merge_adapter()
    torch.testing.assert_close(output(tuned, batch), after, rtol=1e-5, atol=2e-6)
    tuned.unmerge_adapter()
    torch.testing.assert_close(output(tuned, batch), after, rtol=1e-5, atol=2e-6)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(output(merged, batch), after, rtol=1e-5, atol=2e-6)
    if kind == "dense":
        assert merged.state_dict().keys() == before.keys()
        unloaded = again.unload()
        bare = unloaded.state_dict()
        assert options == "bias" or all(torch.equal(value, before[name]) for name, value in bare.items())


@pytest.mark.parametrize("kind", ["dense", "structured"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_one_block_is_lora(family, kind, stabilised):
    """The same initial numbers, the same outputs, and the same after the same training."""
    model, batch = model_of(family, kind)
    options = {"r": 4, "lora_alpha": 7, "target_modules": "all-linear", "use_rslora": stabilised}
    lora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options, fan_in_fan_out=family == "gpt2")).eval()
    tuned = peft.get_peft_model(copy.deepcopy(model), CONFIG(nblocks=1, **options)).eval()
    theirs = {name: m for name, m in lora.named_modules() if hasattr(m, "lora_A") and m.lora_A}
    ours = {name: m for name, m in tuned.named_modules() if hasattr(m, "monarch_update")}
    assert theirs.keys() == ours.keys()
    assert lora.get_nb_trainable_parameters()[0] == tuned.get_nb_trainable_parameters()[0]
    for name, layer in ours.items():
        a, b = theirs[name].lora_A["default"].weight, theirs[name].lora_B["default"].weight
        update = layer.monarch_update["default"]
        assert not update.left.any()
        assert not b.any()
        assert float(update.right.detach().var() / a.detach().var()) == pytest.approx(1, rel=0.5)
        update.right.data, update.left.data = a.data[None].clone(), b.data[None].clone()
    for _ in range(3):
        torch.testing.assert_close(output(tuned, batch), output(lora, batch), rtol=1e-6, atol=1e-6)
        for each in (lora, tuned):
            optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.5)
            each.zero_grad()
            each(**batch)[0].pow(3).mean().backward()
            optimizer.step()
    torch.testing.assert_close(output(tuned, batch), output(lora, batch), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(output(tuned, batch), output(model, batch), atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(15, 23),
        transformers.pytorch_utils.Conv1D(23, 15),
        MonarchLinear(15, 23, nblocks=3, bias=False),
        LowRankLinear(15, 23, rank=3),
        BlockDiagonalLinear(15, 23, nblocks=4),
        ButterflyLinear(15, 23),
        ConcatLinear([MonarchLinear(15, 11, nblocks=2), BlockDiagonalLinear(15, 12)]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_layer(layer):
    layer.requires_grad_(False)
    model, x = nn.ModuleDict({"inner": layer}), torch.randn(2, 5, 15)
    tuned = adapted(model, CONFIG(nblocks=3, r=2, lora_alpha=3, target_modules=["inner"]))
    inner = tuned.base_model.model["inner"]
    right, left = (p.double() for p in inner.monarch_update["default"].parameters())
    (k, q, p), (l, s, _) = right.shape, left.shape  # noqa: E741
    update = torch.zeros(l * s, k * p, dtype=torch.float64)
    for f in range(k * q):  # the definition, one middle feature at a time
        update[f % l :: l, f // q * p : (f // q + 1) * p] += torch.outer(left[f % l, :, f // l], right[f // q, f % q])
    expected = layer(x).double() + 1.5 * x.double() @ update[:23, :15].T
    torch.testing.assert_close(inner(x).double(), expected, rtol=1e-5, atol=1e-5)
    delta = inner.get_delta_weight("default").double()
    torch.testing.assert_close(delta.T if "Conv1D" in type(layer).__name__ else delta, 1.5 * update[:23, :15])
    inner(x).square().sum().backward()
    grads = [p.grad for p in inner.monarch_update.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)
    if not isinstance(layer, nn.Linear | transformers.pytorch_utils.Conv1D | ConcatLinear):
        torch.testing.assert_close(inner(x, activation="relu"), inner(x).relu())


class TestAdapters:
    """Several in one model."""

    @pytest.mark.parametrize("kind", ["dense", "structured"])
    def test_several(self, kind, tmp_path):
        model, batch = model_of("bert", kind)
        plain = output(model, batch)
        tuned = adapted(model, monarch())
        first = output(tuned, batch)
        tuned.add_adapter("second", monarch(nblocks=2, r=3, lora_alpha=5))
        tuned.set_adapter("second")
        second = output(stirred(tuned, 0.3), batch)
        tuned.set_adapter("default")
        assert torch.equal(output(tuned, batch), first)
        with torch.no_grad():
            mixed = tuned(**batch, adapter_names=["default", "second", "__base__", "second"])[0]
        expected = torch.stack([first[0], second[1], plain[2], second[3]])
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
        tuned.set_adapter("second")
        tuned.delete_adapter("default")
        assert torch.equal(output(tuned, batch), second)
        assert [s.available_adapters for s in tuned.get_layer_status()] == [["second"]] * 13
        assert not tuned.get_model_status().merged_adapters
        tuned.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "second").eval()
        assert torch.equal(output(again, batch), second)
        loaded = adapted(model, monarch())
        loaded.load_adapter(tmp_path / "second", "other")
        loaded.set_adapter("other")
        assert torch.equal(output(loaded.eval(), batch), second)

    def test_adapter_names_are_checked(self):
        model, batch = converted("llama")
        tuned = adapted(model, monarch(task_type="CAUSAL_LM"))
        with pytest.raises(ValueError, match=r"adapter_names has \['defalt'\], adapters are \['default'\]"):
            tuned(**batch, adapter_names=["defalt"] * 4)
        with pytest.raises(ValueError, match="adapter_names must be one for each of the 4 samples; got 3"):
            tuned(**batch, adapter_names=["default"] * 3)
        with pytest.raises(ValueError, match="adapter_names chooses adapters by sample in evaluation only"):
            tuned.train()(**batch, adapter_names=["default"] * 4)
        tuned.eval().merge_adapter()
        with pytest.raises(ValueError, match=r"adapters that are merged; call unmerge_adapter\(\) first"):
            tuned(**batch, adapter_names=["default"] * 4)

    @pytest.mark.parametrize("kind", ["dense", "structured"])
    @pytest.mark.parametrize("combination", ["cat", "svd"])
    def test_weighted(self, kind, combination, tmp_path):
        model, batch = model_of("bert", kind)
        tuned = adapted(model, monarch(r=2))
        tuned.add_adapter("second", monarch(r=1, lora_alpha=3, target_modules=["query", "output.dense"]))
        tuned.set_adapter("second")
        stirred(tuned)
        names, weights = ["default", "second"], [0.5, -2.0]
        layers = {name: m for name, m in tuned.named_modules() if hasattr(m, "monarch_update")}
        expected = {
            name: sum(w * m.get_delta_weight(a) for a, w in zip(names, weights, strict=True) if a in m.monarch_update)
            for name, m in layers.items()
        }
        tuned.add_weighted_adapter(names, weights, "both", combination_type=combination, svd_rank=3)
        tuned.set_adapter("both")
        for name, layer in layers.items():
            torch.testing.assert_close(layer.get_delta_weight("both"), expected[name], rtol=1e-5, atol=1e-5)
        after = output(tuned, batch)
        tuned.save_pretrained(tmp_path, selected_adapters=["both"])
        again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "both").eval()
        assert torch.equal(output(again, batch), after)
        with pytest.raises(ValueError, match="combination_type must be 'cat' or 'svd'; got 'ties'"):
            tuned.add_weighted_adapter(names, weights, "more", combination_type="ties")
        with pytest.raises(ValueError, match=r"adapters \['nobody'\] do not exist"):
            tuned.add_weighted_adapter(["nobody"], [1.0], "more")

    def test_a_combination_of_small_rank_is_the_nearest(self):
        model, _ = converted()
        tuned = adapted(model, monarch(r=2, target_modules=["query"]))
        tuned.add_weighted_adapter(["default"], [1.0], "small", combination_type="svd", svd_rank=1)
        layer = tuned.base_model.model.encoder.layer[0].attention.self.query
        whole, found = layer.get_delta_weight("default").double(), layer.get_delta_weight("small").double()
        slices = whole.view(8, 4, 4, 8).permute(1, 2, 0, 3)  # (l, k, s, p)
        lost = torch.linalg.svdvals(slices)[..., 1:].square().sum().sqrt()
        assert torch.linalg.norm(whole - found).item() == pytest.approx(lost.item(), rel=1e-5)

    def test_hot_swapping(self, tmp_path):
        from peft.utils.hotswap import hotswap_adapter

        model, batch = converted()
        expected = []
        for i, options in enumerate(({"lora_alpha": 1}, {"lora_alpha": 9})):
            tuned = stirred(peft.get_peft_model(copy.deepcopy(model), monarch(**options)), 0.1 * (i + 1))
            tuned.save_pretrained(tmp_path / str(i))
            expected.append(output(tuned, batch))
        tuned = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "0").eval()
        for i in (1, 0, 1):
            hotswap_adapter(tuned, tmp_path / str(i), "default", torch_device="cpu")
            assert torch.equal(output(tuned, batch), expected[i])
        adapted(model, monarch(nblocks=2)).save_pretrained(tmp_path / "other blocks")
        with pytest.raises(ValueError, match="nblocks, 4 != 2"):
            hotswap_adapter(tuned, tmp_path / "other blocks", "default", torch_device="cpu")
        adapted(model, monarch(rank_pattern={"query": 2})).save_pretrained(tmp_path / "patterns")
        with pytest.raises(ValueError, match="rank_pattern or alpha_pattern cannot be hot-swapped"):
            hotswap_adapter(tuned, tmp_path / "patterns", "default", torch_device="cpu")
        assert torch.equal(output(tuned, batch), expected[1])


class TestNumbers:
    """Precision, devices without numbers, compilation, checkpointing."""

    @pytest.mark.parametrize("kind", ["dense", "structured"])
    def test_half_precision(self, kind, tmp_path):
        model, batch = model_of("bert", kind)
        model = model.bfloat16()
        tuned = peft.get_peft_model(copy.deepcopy(model), monarch())
        assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
        after = output(stirred(tuned), batch)
        assert after.dtype == torch.bfloat16
        tuned.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
        assert torch.equal(output(again, batch), after)
        merged = copy.deepcopy(tuned).merge_and_unload()
        assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
        assert (output(merged, batch).float() - after.float()).norm() < 0.02 * after.float().norm()
        low = peft.get_peft_model(model, monarch(), autocast_adapter_dtype=False)
        assert {p.dtype for p in low.parameters() if p.requires_grad} == {torch.bfloat16}
        assert output(stirred(low), batch).dtype == torch.bfloat16

    def test_autocast(self):
        model, batch = converted()
        tuned = adapted(model, monarch())
        expected = output(tuned, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = tuned(**batch)[0]
        assert (y.float() - expected).norm() < 0.02 * expected.norm()
        y.float().sum().backward()
        assert {p.grad.dtype for p in tuned.parameters() if p.grad is not None} == {torch.float32}

    def test_loading_without_memory_in_between(self, tmp_path):
        model, batch = converted()
        tuned = adapted(model, monarch())
        tuned.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path, low_cpu_mem_usage=True).eval()
        assert torch.equal(output(again, batch), output(tuned, batch))

    @pytest.mark.parametrize("base", [nn.Linear(16, 24), MonarchLinear(16, 24, nblocks=4)])
    def test_compiles_in_one_piece(self, base):
        tuned = adapted(nn.ModuleDict({"inner": base}), monarch(target_modules=["inner"]))
        layer, x = tuned.base_model.model["inner"], torch.randn(3, 16)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))

    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
    def test_gradient_checkpointing(self, reentrant):
        model, batch = converted()
        tuned = adapted(model, monarch())

        def gradients():
            tuned.zero_grad()
            tuned(**batch)[0].square().sum().backward()
            return [p.grad.clone() for p in tuned.parameters() if p.grad is not None]

        expected = gradients()
        tuned.train()
        for module in tuned.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        tuned.enable_input_require_grads()
        tuned.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.testing.assert_close(gradients(), expected)


def test_adapters_start_at_random_where_that_is_asked_for():
    model, batch = converted()
    tuned = peft.get_peft_model(copy.deepcopy(model), monarch(init_weights=False)).eval()
    assert not torch.allclose(output(tuned, batch), output(model, batch), atol=1e-3)


def test_the_twin_agrees(tmp_path):
    model, batch = converted()
    tuned = adapted(model, monarch(nblocks=3, r=2, lora_alpha=5))
    tuned.save_pretrained(tmp_path)
    twin = peft.PeftModel.from_pretrained(dense_twin(model), tmp_path).eval()
    torch.testing.assert_close(output(twin, batch), output(tuned, batch), rtol=1e-4, atol=1e-5)
