"""The Monarch adapter among others: its targets, transformers, PEFT's own functions, its registration."""

import copy
import enum
import json
import pickle
import subprocess
import sys

import pytest
import torch
from tests.convert.peft_models import QUIET, adapted, batches, build, converted, output, peft
from torch import nn

import milkweed as mw
from milkweed.convert.peft.peft_type import add_member
from milkweed.nn import MonarchLinear

transformers = pytest.importorskip("transformers")
pytestmark = QUIET
CONFIG = mw.MonarchAdapterConfig


def monarch(**options):
    return CONFIG(**{"nblocks": 4, "r": 1, "target_modules": "all-linear", **options})


def model_of(family, kind):
    model, batch = converted(family)
    return (model if kind == "structured" else build(family)), batch


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
                r"no layer can have a Monarch adapter of target_modules=\['nothing'\]: it names no layer",
            ),
            ({"r": 100}, r"all linear layers are too small, the first '.*small': nblocks=4 needs"),
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
        _integrations._register("peft", registration.__name__)
    with pytest.raises(RuntimeError, match=r"peft .* does not know Monarch adapters: .* install peft 0\.21"):
        CONFIG()


def test_without_peft_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("peft", "milkweed.convert.peft"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    for package in (mw, mw.convert):
        monkeypatch.delitem(vars(package), "MonarchAdapterConfig", raising=False)
    for package in (mw, mw.convert):
        with pytest.raises(ModuleNotFoundError, match=r'MonarchAdapterConfig .* peft: pip install "milkweed\[hf\]"'):
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
