"""The Monarch adapter as a method of PEFT: everything that LoRA does there, and LoRA itself with one block."""

import copy
import enum
import json
import pickle
import subprocess
import sys

import pytest
import torch
from tests.convert.peft_models import (
    QUIET,
    adapted,
    batches,
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
from milkweed.convert.peft.peft_type import add_member
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


class TestPlaces:
    """Which layers, and further modules."""

    def test_targets(self):
        model = build("bert")
        cases = [
            ({"target_modules": None}, 4),
            ({"target_modules": ["query"]}, 2),
            ({"target_modules": r".*layer\.1.*(key|value)"}, 2),
            ({"target_modules": ["query", "key"], "layers_to_transform": 1}, 2),
            ({"target_modules": ["query", "key"], "layers_to_transform": [0, 1], "layers_pattern": "layer"}, 4),
            ({"exclude_modules": ["query", "pooler.dense"]}, 10),
        ]
        for options, count in cases:
            tuned = peft.get_peft_model(copy.deepcopy(model), monarch(**options))
            assert len(tuned.base_model.targeted_module_names) == count, options

    def test_all_linear_layers_but_the_head_and_the_small(self):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=3,
        )
        model = transformers.BertForSequenceClassification(config).eval()
        names = peft.get_peft_model(copy.deepcopy(model), monarch(task_type="SEQ_CLS")).base_model.targeted_module_names
        assert len(names) == 13
        assert "classifier" not in names
        names = peft.get_peft_model(copy.deepcopy(model), monarch()).base_model.targeted_module_names
        assert "classifier" not in names  # of 3 outputs, too small for 4 blocks
        names = peft.get_peft_model(copy.deepcopy(model), monarch(nblocks=2)).base_model.targeted_module_names
        assert "classifier" in names

    @pytest.mark.parametrize("kind", ["dense", "structured"])
    def test_modules_to_save(self, kind, tmp_path):
        model, batch = model_of("vit", kind)
        tuned = adapted(model, monarch(target_modules=["fc1", "fc2"], modules_to_save=["classifier"]))
        after = output(tuned, batch)
        tuned.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(model_of("vit", kind)[0], tmp_path).eval()
        assert torch.equal(output(again, batch), after)
        torch.testing.assert_close(output(tuned.merge_and_unload(), batch), after, rtol=1e-5, atol=1e-5)

    def test_refusals_leave_the_model_as_it_was(self):
        model, batch = converted()
        model.embeddings.register_module("small", nn.Linear(32, 2))
        expected = output(model, batch)
        cases = [
            (
                {"target_modules": ["small"]},
                r"small' cannot have a Monarch adapter: nblocks=4 needs out_features >= 4; .*exclude_modules",
            ),
            (
                {"target_modules": ["query", "small"], "r": 20, "exclude_modules": ["small"]},
                r"query' cannot .*: rank must be in 1 .. 8 .*got rank=20",
            ),
            (
                {"target_modules": ["word_embeddings"]},
                "it is a Embedding, not a torch.nn.Linear, a Conv1D or a structured",
            ),
            (
                {"target_modules": ["nothing"]},
                r"no layer can have a Monarch adapter: target_modules=\{'nothing'\} name none",
            ),
            ({"r": 100}, "all are too small for nblocks=4 and r=100"),
        ]
        for options, message in cases:
            with pytest.raises(ValueError, match=message):
                peft.get_peft_model(model, monarch(**options))
            assert torch.equal(output(model, batch), expected)
            assert all(p.requires_grad for p in model.parameters())
        tuned = peft.get_peft_model(model, monarch())
        with pytest.raises(ValueError, match="rank must be in"):
            tuned.add_adapter("second", monarch(target_modules=["query"], r=9))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"r": 0}, "r must be a whole number from 1 on; got r=0"),
            ({"r": 1.5}, "r must be a whole number from 1 on; got r=1.5"),
            ({"nblocks": True}, "nblocks must be a whole number from 1 on; got nblocks=True"),
            ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number; got lora_alpha=nan"),
            ({"lora_dropout": 1.0}, r"lora_dropout must be in 0 .. 1, 1 excluded; got lora_dropout=1.0"),
            ({"bias": "lora_only"}, "bias must be 'none', 'all' or 'monarch_only'; got bias='lora_only'"),
            ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\] must be a whole number"),
            ({"alpha_pattern": {"query": "2"}}, r"alpha_pattern\['query'\] must be a finite number"),
            (
                {"target_modules": "a.*", "layers_to_transform": [1]},
                "layers_to_transform narrows target_modules that are a list",
            ),
            ({"layers_pattern": "layer"}, "layers_pattern='layer' needs layers_to_transform"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            CONFIG(**options)


class TestOtherLibraries:
    """transformers' classes, its Trainer, PEFT's further functions."""

    @pytest.mark.parametrize("kind", ["dense", "structured"])
    def test_the_trainer_keeps_adapters_only(self, kind, tmp_path):
        model, batch = model_of("gpt2", kind)
        rows = [{"input_ids": row, "labels": row} for one in batches("gpt2")[:4] for row in one["input_ids"]]

        def run(resume=None):
            transformers.set_seed(0)
            tuned = peft.get_peft_model(copy.deepcopy(model), monarch(lora_dropout=0.1, task_type="CAUSAL_LM"))
            arguments = transformers.TrainingArguments(
                tmp_path,
                max_steps=4,
                per_device_train_batch_size=4,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
                save_steps=2,
                eval_strategy="steps",
                eval_steps=2,
                load_best_model_at_end=True,
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = transformers.Trainer(tuned, arguments, train_dataset=rows, eval_dataset=rows[:4])
            trainer.train(resume_from_checkpoint=resume)
            return tuned.eval()

        whole = run()
        assert "model.safetensors" not in {file.name for file in (tmp_path / "checkpoint-4").iterdir()}
        assert torch.equal(output(run(tmp_path / "checkpoint-2"), batch), output(whole, batch))
        again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "checkpoint-4").eval()
        assert torch.equal(output(again, batch), output(whole, batch))

    @pytest.mark.parametrize("kind", ["dense", "structured"])
    def test_transformers_loads_the_folder_of_an_adapter(self, kind, tmp_path):
        model, batch = model_of("gpt2", kind)
        model.save_pretrained(tmp_path / "base")
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        tuned = adapted(base, monarch(task_type="CAUSAL_LM"))
        tuned.save_pretrained(tmp_path / "adapter")
        for auto in (transformers.AutoModelForCausalLM, peft.AutoPeftModelForCausalLM):
            again = auto.from_pretrained(tmp_path / "adapter").eval()
            assert torch.equal(output(again, batch), output(tuned, batch))
        # What is merged is a model of its own again, saved by transformers.
        merged = tuned.merge_and_unload()
        after = output(merged, batch)
        merged.save_pretrained(tmp_path / "merged")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert torch.equal(output(again, batch), after)

    def test_generation_with_a_cache(self):
        model, batch = converted("llama")
        tuned = adapted(model, monarch(task_type="CAUSAL_LM"))
        found = [tuned.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
        assert torch.equal(*found)

    def test_peft_makes_a_lora_of_it(self):
        model, batch = converted()
        tuned = adapted(model, monarch(nblocks=2, target_modules=["query", "intermediate.dense"]))
        config, state = peft.convert_to_lora(tuned, rank=4)  # two blocks of rank 1: any rank up to 4
        lora = peft.get_peft_model(copy.deepcopy(model), config).eval()
        assert not peft.set_peft_model_state_dict(lora, state).unexpected_keys
        torch.testing.assert_close(output(lora, batch), output(tuned, batch), rtol=1e-4, atol=1e-5)

    def test_injection_into_any_module(self):
        model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), MonarchLinear(16, 16)), torch.randn(3, 16)
        expected = model(x)
        injected = peft.inject_adapter_in_model(monarch(target_modules=["0", "2"]), model)
        assert torch.equal(injected(x), expected)
        assert [name for name, p in injected.named_parameters() if p.requires_grad] == [
            f"{i}.monarch_update.default.{factor}" for i in (0, 2) for factor in ("right", "left")
        ]

    def test_quantised_weights_are_adapted_but_not_merged(self):
        class Int8Linear(nn.Linear):
            def forward(self, x):
                return x @ self.weight.to(x.dtype).T * 0.01

        layer = Int8Linear(16, 16, bias=False)
        layer.weight = nn.Parameter(torch.randint(-9, 9, (16, 16)).to(torch.int8), requires_grad=False)
        tuned = adapted(nn.ModuleDict({"inner": layer}), monarch(target_modules=["inner"]), autocast_adapter_dtype=True)
        inner, x = tuned.base_model.model["inner"], torch.randn(3, 16)
        assert not torch.equal(inner(x), layer(x))
        with pytest.raises(
            ValueError, match=r"cannot be merged into a Int8Linear .* of torch.int8; leave them unmerged"
        ):
            tuned.merge_adapter()


def test_a_file_names_its_method_and_one_without_milkweed_says_whose_it_is(tmp_path):
    adapted(build("bert"), monarch()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "MILKWEED_MONARCH"
    assert (written["nblocks"], written["r"], written["lora_alpha"]) == (4, 1, 1)
    code = f"""
import peft
try:
    peft.PeftConfig.from_pretrained({str(tmp_path)!r})
except Exception as error:
    print(repr(error))
import milkweed
print(type(peft.PeftConfig.from_pretrained({str(tmp_path)!r})).__name__)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "MILKWEED_MONARCH" in found[-2]
    assert found[-1] == "MonarchAdapterConfig"


def test_a_member_is_added_to_an_enumeration_of_strings_only():
    class Kind(str, enum.Enum):  # noqa: UP042 - as peft's
        ONE = "ONE"

    member = add_member(Kind, "TWO")
    assert Kind("TWO") is Kind["TWO"] is Kind.TWO is member is add_member(Kind, "TWO")
    assert list(Kind) == [Kind.ONE, member]
    assert (str(member.value), member.name, f"{member == 'TWO'}") == ("TWO", "TWO", "True")
    assert pickle.loads(pickle.dumps(peft.PeftType.MILKWEED_MONARCH)) is peft.PeftType.MILKWEED_MONARCH
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[peft.PeftType.MILKWEED_MONARCH] == "monarch_"

    class Number(enum.Enum):
        ONE = 1

    with pytest.raises(TypeError, match="Number is no enumeration of strings"):
        add_member(Number, "TWO")


def test_another_version_is_left_as_it_is(monkeypatch):
    """Its own import goes on with a warning, and the method says what to install."""
    from peft.tuners.lora import model as lora_model

    from milkweed import _integrations
    from milkweed.convert.peft import config, registration

    known = {name: member for name, member in peft.PeftType.__members__.items() if name != "MILKWEED_MONARCH"}
    older = enum.Enum("PeftType", known, type=str)
    monkeypatch.setattr(peft.utils.peft_types, "PeftType", older)
    monkeypatch.setattr(config, "PeftType", older)
    monkeypatch.setattr(lora_model, "dispatch_default", lambda target, adapter_name, lora_config: None)
    monkeypatch.delitem(sys.modules, registration.__name__)
    with pytest.warns(UserWarning, match=r"cannot extend this version of peft: .*takes target, .*lora_config"):
        _integrations._extend("peft", registration.__name__)
    with pytest.raises(RuntimeError, match=r"peft .* does not know Monarch adapters: .* install peft 0\.21"):
        CONFIG()


def test_without_peft_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("peft", "milkweed.convert.peft"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    for package in (mw, mw.convert):
        monkeypatch.delitem(vars(package), "MonarchAdapterConfig", raising=False)
    for package in (mw, mw.convert):
        with pytest.raises(ModuleNotFoundError, match=r"milkweed.MonarchAdapterConfig needs peft, .* 'milkweed\[hf\]'"):
            package.MonarchAdapterConfig  # noqa: B018


def test_transformers_own_methods(tmp_path):
    model, batch = converted("gpt2")
    tuned = adapted(model, monarch())
    tuned.save_pretrained(tmp_path)
    model.load_adapter(tmp_path)
    assert torch.equal(output(model.eval(), batch), output(tuned, batch))
    # This version of transformers asks for a later peft, whatever the method.
    with pytest.raises(ValueError, match="version of PEFT"):
        build("gpt2").add_adapter(peft.LoraConfig())


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
