"""Experts in 3-d parameters: split for a conversion, converted, saved, loaded, and fused again."""

import copy
import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from tests.convert.experts import EXPERTS, MIXTURES, batches, build, logits, make, mixture, routed, transformers
from torch import nn
from transformers import conversion_mapping

import milkweed as mw
from milkweed.convert.experts import experts_apart, fuse_, split_recorded_
from milkweed.convert.split_experts import SplitExperts, is_fused
from milkweed.nn import MonarchLinear


@pytest.fixture
def quiet():
    logging = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity_warning()
    logging.enable_progress_bar()


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_experts_give_what_the_fused_ones_give(kind, dtype):
    experts = make(kind)
    wide = copy.deepcopy(experts).double()
    split = SplitExperts(experts.to(dtype))
    # The third expert gets no token; an index that is no expert's counts for nothing.
    x, index, weights = routed(experts, dtype)
    expected = wide(x.double(), index, weights.double())
    error = (split(x, index, weights).double() - expected).norm() / expected.norm()
    fused = (experts(x, index, weights).double() - expected).norm() / expected.norm()
    assert error < 2e-6 if dtype == torch.float32 else error < 1.5 * fused + 1e-3
    assert split(x, index, weights).dtype == dtype


@pytest.mark.parametrize("kind", EXPERTS)
def test_split_experts_have_the_gradients_of_the_fused_ones(kind):
    experts = make(kind).double()
    split = SplitExperts(experts)
    inputs = [each.clone().requires_grad_(each.is_floating_point()) for each in routed(experts, torch.float64)]
    others = [each.detach().clone().requires_grad_(each.is_floating_point()) for each in inputs]
    experts(*inputs).square().sum().backward()
    split(*others).square().sum().backward()
    for found, expected in zip(others, inputs, strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad)
    for layer in (layer for layer in split.modules() if isinstance(layer, nn.Linear)):
        for parameter in layer.parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.data = grad
    gradients = split.to_fused()
    for name, parameter in experts.named_parameters():
        if name in gradients.state_dict() and parameter.ndim > 1:
            torch.testing.assert_close(gradients.get_parameter(name), parameter.grad)


@pytest.mark.parametrize("kind", EXPERTS)
def test_split_experts_are_fused_to_the_same_numbers(kind):
    experts = make(kind)
    expected = {name: value.clone() for name, value in experts.state_dict().items()}
    back = pickle.loads(pickle.dumps(copy.deepcopy(SplitExperts(experts)))).to_fused()
    assert type(back) is type(experts)
    assert list(back.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())
    inputs = routed(experts, torch.float32)
    assert torch.equal(back(*inputs), experts(*inputs))


def test_experts_without_any_token():
    split = SplitExperts(make("mixtral"))
    x, index, weights = routed(split, torch.float32)
    assert split(x[:0], index[:0], weights[:0]).shape == (0, x.shape[1])
    nobody = torch.full_like(index, len(split.split))
    assert torch.equal(split(x, nobody, weights), torch.zeros_like(x))


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_export_with_any_number_of_tokens(kind):
    split = SplitExperts(make(kind))
    inputs = routed(split, torch.float32)
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(split, inputs, dynamic_shapes=({0: rows},) * 3, strict=False).module()
    for count in (2, len(inputs[0])):
        some = [each[:count] for each in inputs]
        torch.testing.assert_close(program(*some), split(*some))


def test_a_model_has_its_own_experts_after_planning():
    model = build("mixtral")
    before = dict(model.named_modules())
    with experts_apart(model):
        assert isinstance(model.model.layers[0].mlp.experts, SplitExperts)
        assert model.model.layers[0].mlp.experts.split[1]["down_linear"].weight.data_ptr() == (
            before["model.layers.0.mlp.experts"].down_proj[1].data_ptr()
        )
    assert dict(model.named_modules()) == before
    with pytest.raises(ValueError, match="matches none"):
        mw.plan_conversion(model, {"nowhere": mw.MonarchConfig(2)})
    assert dict(model.named_modules()) == before


@pytest.mark.sampled
@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_there_and_back(family, tmp_path):
    model, inputs = mixture(family), batches()
    expected = logits(model, inputs[0])
    keys = list(model.state_dict())
    converted = copy.deepcopy(model)
    report = mw.convert_(converted, mw.plan_conversion(model, mw.MonarchConfig(2), inputs, tokens=None))
    assert list(model.state_dict()) == keys
    layers = [line for line in report.converted if ".experts.split." in line.name]
    assert len(layers) == MIXTURES[family]
    assert not any(
        "router" in line.name or line.name.endswith(("mlp.gate", "shared_expert_gate")) for line in report.converted
    )
    assert (
        report.model_parameters_after == sum(p.numel() for p in converted.parameters()) < 0.9 * report.model_parameters
    )
    found = logits(converted, inputs[0])
    assert 1e-3 < (found - expected).norm() / expected.norm() < 0.9

    mw.save_pretrained(converted, tmp_path / "monarch")
    loaded = mw.load_pretrained(tmp_path / "monarch")
    assert torch.equal(logits(loaded, inputs[0]), found)
    tokens = {"input_ids": inputs[0]["input_ids"], "attention_mask": inputs[0]["attention_mask"]}
    some = [
        loaded.generate(**tokens, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*some)

    mw.densify_(converted)
    assert list(converted.state_dict()) == keys
    torch.testing.assert_close(logits(converted, inputs[0]), found, rtol=1e-4, atol=1e-5)
    converted.save_pretrained(tmp_path / "dense")
    again = type(model).from_pretrained(tmp_path / "dense").eval()
    torch.testing.assert_close(logits(again, inputs[0]), found, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_saved_and_loaded_by_transformers(family, tmp_path, quiet):
    model, batch = mixture(family), batches(1)[0]
    model.save_pretrained(tmp_path / "dense")
    mw.convert_(model, mw.MonarchConfig(2))
    expected, hidden = logits(model, batch), model.model(**batch)[0]
    model.save_pretrained(tmp_path / "head", max_shard_size="20kB")
    loaded, report = type(model).from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=0, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        logits(type(model).from_pretrained(tmp_path / "again"), batch), expected, rtol=0, atol=1e-6
    )
    half = type(model).from_pretrained(tmp_path / "head", dtype=torch.bfloat16)
    stored = {name: value for name, value in half.state_dict().items() if ".experts." in name}
    assert all(torch.equal(value, model.state_dict()[name].bfloat16()) for name, value in stored.items())
    assert logits(half, batch).dtype == torch.bfloat16

    base = transformers.AutoModel.from_pretrained(tmp_path / "head")
    torch.testing.assert_close(base(**batch)[0], hidden, rtol=0, atol=1e-6)
    base.save_pretrained(tmp_path / "base")
    torch.testing.assert_close(
        type(model).from_pretrained(tmp_path / "base").model(**batch)[0], hidden, rtol=0, atol=1e-6
    )

    config = mw.MilkweedConfig(nblocks=2)
    converted = type(model).from_pretrained(tmp_path / "dense", quantization_config=config)
    torch.testing.assert_close(logits(converted, batch), expected, rtol=0, atol=1e-6)
    # What a folder was loaded with is kept and used again: the names of the published format come back.
    mw.densify_(loaded)
    loaded.save_pretrained(tmp_path / "plain")
    names = [set(safe_open(tmp_path / name / "model.safetensors", "pt").keys()) for name in ("dense", "plain")]
    assert names[0] == names[1]
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_a_folder_of_a_mixture_is_converted_and_converted_again(tmp_path, quiet):
    model, batch = mixture("mixtral"), batches(1)[0]
    model.save_pretrained(tmp_path / "dense")
    done = mw.convert_folder(tmp_path / "dense", tmp_path / "once", {"re:.*split.*down_linear": mw.MonarchConfig(2)})
    assert len(done.report.converted) == 8
    mw.convert_(model, {"re:.*split.*down_linear": mw.MonarchConfig(2)})
    once = mw.load_pretrained(tmp_path / "once")
    torch.testing.assert_close(logits(once, batch), logits(model, batch), rtol=0, atol=1e-6)
    mw.convert_folder(tmp_path / "once", tmp_path / "twice", {"re:.*split.*up_linear": mw.MonarchConfig(2)})
    mw.convert_(model, {"re:.*split.*up_linear": mw.MonarchConfig(2)})
    twice = type(model).from_pretrained(tmp_path / "twice")
    torch.testing.assert_close(logits(twice, batch), logits(model, batch), rtol=0, atol=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_split_experts_are_not_loaded_without_milkweed(family, tmp_path):
    # Of a model in which only experts are converted, so that their markers alone stop the loader.
    model = mixture(family)
    mw.convert_(model, {"re:.*split.*down_linear": mw.MonarchConfig(2)})
    model.save_pretrained(tmp_path)
    code = (
        f"import transformers\ntransformers.{type(model).__name__}.from_pretrained({str(tmp_path)!r})\nprint('LOADED')"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "LOADED" not in ran.stdout
    assert re.search(r"experts\.down_proj\s.*MISMATCH", ran.stderr)


def test_transformers_leaves_the_names_of_split_experts_alone():
    # It renames tensors of files by patterns, and merges some: of other families too, whose patterns may be anything.
    table = (
        conversion_mapping.get_checkpoint_conversion_mapping("mixtral")
        and conversion_mapping._checkpoint_conversion_mapping_cache
    )
    for name in ("weight", "bias", "right", "left", "parts.0.right", "values"):
        for layer in ("gate_linear", "up_linear", "down_linear"):
            end = f"experts.split.13.{layer}.{name}"
            for transforms in table.values():
                for transform in transforms:
                    for each in (transform, transform.reverse_transform()):
                        assert each.rename_source_key(f"model.layers.0.mlp.{end}")[0].endswith(end)


@pytest.mark.parametrize(
    "rules",
    [
        {"re:.*split.*down_linear": mw.MonarchConfig(2)},
        {"model.layers.1.mlp.experts.split.2.up_linear": mw.MonarchConfig(2)},
        {"re:.*q_proj": mw.MonarchConfig(2)},
    ],
    ids=["down", "one", "none"],
)
def test_partly_converted_experts(rules, tmp_path):
    model, inputs = build("mixtral"), batches(1)[0]
    report = mw.convert_(model, rules)
    names = {line.name for line in report.converted}
    split = [name for name, module in model.named_modules() if isinstance(module, SplitExperts)]
    assert split == sorted({name.partition(".split.")[0] for name in names if ".split." in name})
    structured = {name for name, module in model.named_modules() if isinstance(module, MonarchLinear)}
    assert structured == names
    found = logits(model, inputs)
    mw.save_pretrained(model, tmp_path)
    assert torch.equal(logits(mw.load_pretrained(tmp_path), inputs), found)
    # What stays dense is not a view of the fused parameter, which is let go.
    memory = [p.untyped_storage() for p in model.parameters()]
    assert len({each.data_ptr() for each in memory}) == len(memory)
    assert all(
        p.is_contiguous() and p.numel() * p.element_size() == p.untyped_storage().nbytes() for p in model.parameters()
    )
    mw.densify_(model)
    assert not any(isinstance(module, SplitExperts) for module in model.modules())
    torch.testing.assert_close(logits(model, inputs), found, rtol=1e-4, atol=1e-5)


def test_split_and_fused_on_the_meta_device():
    model = build("mixtral").to("meta")
    keys = {name: value.shape for name, value in model.state_dict().items()}
    split_recorded_(model, ["model.layers.1.mlp.experts.split.0.down_linear"])
    assert [isinstance(layer.mlp.experts, SplitExperts) for layer in model.model.layers] == [False, True]
    assert all(p.is_meta for p in model.parameters())
    fuse_(model)
    assert {name: value.shape for name, value in model.state_dict().items()} == keys


def test_a_file_is_loaded_into_a_model_of_ones_own(tmp_path):
    model = nn.Sequential(build("mixtral").model.layers[0].mlp)
    dense, x = copy.deepcopy(model), torch.randn(1, 5, 32)
    mw.convert_(model, mw.MonarchConfig(2))
    mw.save_pretrained(model, tmp_path / "own.safetensors")
    fused = dense[0].experts.gate_up_proj
    broken = copy.deepcopy(model)
    broken[0].gate = nn.Linear(32, 4)
    mw.save_pretrained(broken, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        mw.load_pretrained(tmp_path / "other.safetensors", into=dense)
    assert dense[0].experts.gate_up_proj is fused
    mw.load_pretrained(tmp_path / "own.safetensors", into=dense)
    assert torch.equal(dense(x), model(x))


@pytest.mark.parametrize(
    "options", [{}, {"permute": True}, {"sequential": True}, {"sequential": True, "permute": True}]
)
def test_experts_that_calibration_passes_by(options):
    model = build("mixtral", num_local_experts=8)
    few = [{"input_ids": torch.tensor([[3, 4]])}]
    report = mw.plan_conversion(model, mw.MonarchConfig(2), few, tokens=None, **options).report
    seen = {line.name: line.output_error for line in report.converted if ".split." in line.name}
    assert None in seen.values()
    assert any(value is not None for value in seen.values())
    assert any("got no calibration inputs" in note for note in report.notes)
    plain = mw.plan_conversion(model, mw.MonarchConfig(2), tokens=None)
    same = {line.name: line.relative_error for line in plain.report.converted}
    assert all(line.relative_error == same[line.name] for line in report.converted if line.output_error is None)
    mw.convert_(model, mw.plan_conversion(model, mw.MonarchConfig(2), few, tokens=None, **options))
    assert all(p.isfinite().all() for p in model.parameters())


def test_few_inputs_count_less_than_many():
    torch.manual_seed(0)
    moments = mw.convert.input_moments.InputMoments(6, prior=6)
    x = torch.randn(3, 6, dtype=torch.float64)
    moments.add(x)
    seen = x.T @ x / 3
    expected = (3 * seen + 6 * seen.trace() / 6 * torch.eye(6)) / 9
    torch.testing.assert_close(moments.covariance(centred=False), expected)
    order = torch.randperm(6)
    torch.testing.assert_close(moments.reordered(order).covariance(False), expected[order][:, order])


def test_padding_does_not_count_for_experts():
    model = build("mixtral")
    generator = torch.Generator().manual_seed(1)
    padded = [
        {
            "input_ids": torch.randint(3, 50, (4, 10), generator=generator),
            "attention_mask": torch.ones(4, 10, dtype=torch.long),
        }
    ]
    padded[0]["attention_mask"][2:, 6:] = 0
    other = [{**padded[0], "input_ids": padded[0]["input_ids"].clone()}]
    other[0]["input_ids"][2:, 6:] = 7
    for options in ({}, {"sequential": True}):
        plans = [
            mw.plan_conversion(model, mw.MonarchConfig(2), data, tokens=None, **options) for data in (padded, other)
        ]
        for name in plans[0].layers:
            for one, two in zip(plans[0].layers[name].parameters(), plans[1].layers[name].parameters(), strict=True):
                torch.testing.assert_close(one, two)


def test_calibration_and_order_serve_experts():
    model, inputs = build("mixtral", num_hidden_layers=1), batches(20)
    expected = logits(model, inputs[0])
    errors = []
    for options in ({}, {"calibration": inputs}, {"calibration": inputs, "sequential": True}):
        converted = copy.deepcopy(model)
        mw.convert_(converted, mw.plan_conversion(converted, mw.MonarchConfig(2), tokens=None, **options))
        errors.append(float((logits(converted, inputs[0]) - expected).norm()))
    assert errors[1] < errors[0]
    assert errors[2] < errors[0]
    report = mw.plan_conversion(model, mw.MonarchConfig(2), inputs, tokens=None, permute=True).report
    assert (
        "model.layers.0.mlp.experts.split.0.gate_linear",
        "model.layers.0.mlp.experts.split.0.up_linear",
        "model.layers.0.mlp.experts.split.0.down_linear",
    ) in report.reordered


def test_experts_that_cannot_be_split_stay():
    model = build("mixtral")
    first, second = (layer.mlp.experts for layer in model.model.layers)
    first.register_forward_hook(lambda *_: None)
    second.down_proj = nn.Parameter(second.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    assert not is_fused(second)
    report = mw.plan_conversion(model, mw.MonarchConfig(2), tokens=None).report
    kept = {line.name for line in report.kept}
    assert {"model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.gate_up_proj"} <= kept
    assert not any(".split." in line.name for line in report.layers)


def test_a_changed_expert_outdates_a_plan():
    model = build("mixtral")
    plan = mw.plan_conversion(model, {"re:.*split.*": mw.MonarchConfig(2)}, tokens=None)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.gate_up_proj[2, 3, 4] += 1
    with pytest.raises(ValueError, match=r"experts\.split\.2\.gate_linear.*plan again"):
        mw.convert_(model, plan)
    assert not any(isinstance(module, SplitExperts) for module in model.modules())
