"""LoRA on structured layers: as on dense ones of the same numbers, saved and loaded without a difference."""

import copy
import dataclasses
from collections import OrderedDict

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
    structured_names,
    trained,
)
from torch import nn

import milkweed as mw
from milkweed.nn import BlockDiagonalLinear, ButterflyLinear, ConcatLinear, LowRankLinear, MonarchLinear, PixelflyLinear

pytestmark = QUIET
LORA = peft.LoraConfig
OPTIONS = {
    "plain": {},
    "dropout": {"lora_dropout": 0.3},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "rank_pattern": {"layer.0.intermediate.dense": 2, "h.0.mlp.c_fc": 2},
        "alpha_pattern": {"query|c_proj": 16},
    },
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


def lora(**options):
    return LORA(**{"r": 4, "target_modules": "all-linear", **options})


@pytest.mark.sampled
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_the_way_of_an_adapter(family, options, tmp_path):
    model, batch = converted(family)
    expected, config = output(model, batch), lora(**OPTIONS[options], fan_in_fan_out=family == "gpt2")
    torch.manual_seed(0)
    tuned = peft.get_peft_model(copy.deepcopy(model), config)
    if options != "orthogonal":  # which does not start at zero
        assert torch.equal(output(tuned.eval(), batch), expected)
    trained(tuned.train(), batch)
    after = output(tuned.eval(), batch)
    assert not torch.allclose(after, expected, atol=1e-4)
    # Adapters read and change dense layers of the same numbers in the same way.
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert torch.equal(output(again, batch), after)
    twin = peft.PeftModel.from_pretrained(dense_twin(model), tmp_path).eval()
    torch.testing.assert_close(output(twin, batch), after, rtol=1e-4, atol=1e-5)
    with tuned.disable_adapter():
        assert torch.equal(output(tuned, batch), expected)


def test_all_linear_layers_are_named_once():
    model, _ = converted("gpt2")
    tuned = peft.get_peft_model(model, lora())
    assert set(tuned.base_model.targeted_module_names) == {
        f"transformer.h.{i}.{name}"
        for i in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    tuned.add_adapter("second", lora(r=2))
    layer = tuned.base_model.model.transformer.h[0].attn.c_attn
    assert set(layer.lora_A) == {"default", "second"}
    assert isinstance(layer.base_layer, ConcatLinear)
    assert not [name for name, _ in layer.base_layer.named_modules() if "lora" in name]


def test_all_linear_layers_leave_the_head_out_even_if_it_is_structured():
    model, _ = converted("gpt2", {"re:.*": mw.MonarchConfig(2, rank=2)} | {"transformer.h.0.mlp.c_fc": None})
    model.lm_head = MonarchLinear(32, 50, nblocks=2, bias=False)
    names = peft.get_peft_model(model, lora()).base_model.targeted_module_names
    assert "lm_head" not in names
    assert "transformer.h.0.mlp.c_fc" in names
    assert len(names) == 8


def test_default_targets_are_found():
    for family, count in (("bert", 4), ("gpt2", 2), ("llama", 4)):
        model, batch = converted(family)
        expected = output(model, batch)
        tuned = peft.get_peft_model(model, LORA())
        assert len(tuned.base_model.targeted_module_names) == count
        assert torch.equal(output(tuned.eval(), batch), expected)


@pytest.mark.parametrize(
    "layer",
    [
        MonarchLinear(16, 24, nblocks=4, rank=1),
        MonarchLinear(15, 23, nblocks=3, bias=False),
        LowRankLinear(16, 24, rank=3),
        PixelflyLinear(16, 24, nblocks=4, rank=2),
        BlockDiagonalLinear(16, 24, nblocks=4),
        ButterflyLinear(16, 24),
        ConcatLinear([MonarchLinear(16, 12, nblocks=2), BlockDiagonalLinear(16, 12)]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_structured_layer(layer):
    n, m = layer.in_features, layer.out_features
    model, x = nn.Sequential(OrderedDict(inner=layer)), torch.randn(5, n)
    tuned = adapted(model, LORA(r=2, lora_alpha=3, target_modules=["inner"]))
    inner = tuned.base_model.model.inner
    assert (inner.in_features, inner.out_features) == (n, m)
    a, b = inner.lora_A["default"].weight, inner.lora_B["default"].weight
    torch.testing.assert_close(tuned(x), layer(x) + 1.5 * x @ a.T @ b.T)
    tuned(x).square().sum().backward()
    assert a.grad.abs().sum() > 0
    assert all(p.grad is None for p in inner.base_layer.parameters())


def test_an_activation_comes_after_the_adapter():
    layer = MonarchLinear(16, 16, nblocks=4)
    tuned = adapted(nn.Sequential(layer), LORA(r=2, target_modules=["0"]))
    inner, x = tuned.base_model.model[0], torch.randn(3, 16)
    expected = nn.functional.gelu(inner(x))
    torch.testing.assert_close(inner(x, "gelu"), expected)
    torch.testing.assert_close(inner(x, activation="gelu"), expected)
    tuned.merge_adapter()
    torch.testing.assert_close(inner(x, activation="gelu"), expected)


def test_several_adapters(tmp_path):
    model, batch = converted()
    tuned = adapted(model, lora())
    first = output(tuned, batch)
    tuned.add_adapter("second", lora(r=2, lora_alpha=5))
    tuned.set_adapter("second")
    second = output(stirred(tuned, 0.3), batch)
    tuned.set_adapter("default")
    assert torch.equal(output(tuned, batch), first)
    # Each sample by an adapter of its own.
    with torch.no_grad():
        mixed = tuned(**batch, adapter_names=["default", "second", "__base__", "second"])[0]
    expected = torch.stack([first[0], second[1], output(model, batch)[2], second[3]])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    # Both, and a weighted combination that is exact.
    tuned.base_model.set_adapter(["default", "second"])
    both = output(tuned, batch)
    tuned.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum", combination_type="cat")
    tuned.set_adapter("sum")
    torch.testing.assert_close(output(tuned, batch), both, rtol=1e-5, atol=1e-5)
    tuned.set_adapter("second")
    tuned.delete_adapter("sum")
    tuned.delete_adapter("default")
    assert torch.equal(output(tuned, batch), second)
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(model, tmp_path / "second").eval()
    assert torch.equal(output(again, batch), second)


def test_numbers_of_half_precision(tmp_path):
    model, batch = converted()
    model = model.bfloat16()
    tuned = peft.get_peft_model(copy.deepcopy(model), lora())
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    after = output(stirred(tuned), batch)
    assert after.dtype == torch.bfloat16
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert torch.equal(output(again, batch), after)
    low = peft.get_peft_model(model, lora(), autocast_adapter_dtype=False)
    assert {p.dtype for p in low.parameters() if p.requires_grad} == {torch.bfloat16}


def test_loading_without_memory_in_between(tmp_path):
    model, batch = converted()
    tuned = adapted(model, lora(init_lora_weights="orthogonal"))
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(output(again, batch), output(tuned, batch))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.filterwarnings("ignore:Adapter .* tensor.s. have invalid shape")  # peft of its own bias
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
def test_biases_are_trained_and_saved(family, tmp_path):
    model, batch = converted(family)
    tuned = trained(peft.get_peft_model(copy.deepcopy(model), lora(bias="all", lora_bias=True)), batch).eval()
    after = output(tuned, batch)
    layer = tuned.get_submodule({"bert": "encoder.layer.0.output.dense", "gpt2": "transformer.h.0.attn.c_attn"}[family])
    assert all(p.requires_grad for name, p in layer.base_layer.named_parameters() if name.endswith("bias"))
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert torch.equal(output(again, batch), after)
    tuned.merge_adapter()
    torch.testing.assert_close(output(tuned, batch), after, rtol=1e-5, atol=1e-5)
    tuned.unmerge_adapter()
    assert torch.equal(output(tuned, batch), after)


def test_modules_to_save_may_be_structured(tmp_path):
    model, batch = converted()
    tuned = adapted(model, LORA(r=2, target_modules=["query"], modules_to_save=["encoder.layer.1.output.dense"]))
    assert not any(
        p.requires_grad for p in tuned.base_model.model.encoder.layer[1].output.dense.original_module.parameters()
    )
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert torch.equal(output(again, batch), output(tuned, batch))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing(reentrant):
    model, batch = converted()
    tuned = adapted(model, lora())

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


def test_the_trainer_keeps_adapters_only(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, batch = converted("gpt2")
    rows = [{"input_ids": row, "labels": row} for one in batches("gpt2")[:4] for row in one["input_ids"]]

    def run(name, steps, resume=None):
        transformers.set_seed(0)
        tuned = peft.get_peft_model(copy.deepcopy(model), lora(lora_dropout=0.1, task_type="CAUSAL_LM"))
        arguments = transformers.TrainingArguments(
            tmp_path / name,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **({"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True} if steps == 4 else {}),
        )
        trainer = transformers.Trainer(tuned, arguments, train_dataset=rows, eval_dataset=rows[:4])
        trainer.train(resume_from_checkpoint=resume)
        return tuned.eval()

    whole = run("whole", 4)
    folder = tmp_path / "whole" / "checkpoint-4"
    held = {file.name for file in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= held
    assert "model.safetensors" not in held
    resumed = run("whole", 4, tmp_path / "whole" / "checkpoint-2")
    assert torch.equal(output(resumed, batch), output(whole, batch))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    assert torch.equal(output(again, batch), output(whole, batch))  # the best is the last: it only learns


def test_hot_swapping(tmp_path):
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    model, batch = converted()
    expected = []
    for i, (r, alpha) in enumerate(((4, 4), (4, 9), (2, 3))):
        tuned = stirred(peft.get_peft_model(copy.deepcopy(model), lora(r=r, lora_alpha=alpha)), 0.1 * (i + 1))
        tuned.save_pretrained(tmp_path / str(i))
        expected.append(output(tuned, batch))
    tuned = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "0").eval()
    for i in (1, 2, 0):
        hotswap_adapter(tuned, tmp_path / str(i), "default", torch_device="cpu")
        torch.testing.assert_close(output(tuned, batch), expected[i], rtol=1e-5, atol=1e-5)
    tuned = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "2").eval()
    prepare_model_for_compiled_hotswap(tuned, target_rank=4)
    hotswap_adapter(tuned, tmp_path / "1", "default", torch_device="cpu")
    torch.testing.assert_close(output(tuned, batch), expected[1], rtol=1e-5, atol=1e-5)


def test_eva_looks_at_inputs_only():
    model, _ = converted()
    config = lora(target_modules=["query", "value"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0))
    data = batches("bert")[:6]
    found = []
    for base in (model, dense_twin(model)):
        torch.manual_seed(0)
        tuned = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config), low_cpu_mem_usage=True).eval()
        peft.initialize_lora_eva_weights(tuned, data, show_progress_bar=False)
        found.append({name: p.detach() for name, p in tuned.named_parameters() if "lora_A" in name})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close((value.T @ value), found[1][name].T @ found[1][name], rtol=1e-2, atol=1e-3)


VARIANTS = {
    "bdlora": {
        "use_bdlora": peft.tuners.lora.BdLoraConfig(
            target_modules_bd_a=["query"], target_modules_bd_b=["dense"], nblocks=2, match_strict=False
        )
    },
    "velora": {"velora_config": peft.tuners.lora.VeloraConfig(num_groups=4)},
    "monteclora": {"monteclora_config": peft.tuners.lora.MontecloraConfig()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_that_read_no_weight(variant, tmp_path):
    model, batch = converted()
    found = []
    for base in (model, dense_twin(model)):
        torch.manual_seed(0)
        tuned = peft.get_peft_model(copy.deepcopy(base), lora(**copy.deepcopy(VARIANTS[variant])))
        found.append(output(stirred(tuned), batch))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], output(model, batch), atol=1e-3)


def test_a_base_that_is_made_dense_keeps_its_adapter():
    model, batch = converted()
    tuned = adapted(model, lora())
    after = output(tuned, batch)
    names = mw.densify_(tuned)
    assert len(names) == 12
    assert not structured_names(tuned)
    torch.testing.assert_close(output(tuned, batch), after, rtol=1e-4, atol=1e-5)
    merged = tuned.merge_and_unload()
    assert {type(layer) for layer in merged.modules() if "Linear" in type(layer).__name__} == {nn.Linear}
    torch.testing.assert_close(output(merged, batch), after, rtol=1e-4, atol=1e-5)


def test_configurations_are_left_as_they_are():
    config = lora()
    before = dataclasses.asdict(config)
    model = build("bert")
    peft.get_peft_model(model, copy.deepcopy(config))
    assert dataclasses.asdict(config) == before
