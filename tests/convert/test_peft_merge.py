"""Adapters merged into structured layers: exactly, by their rank, and taken out again bit for bit."""

import copy

import pytest
import torch
from tests.convert.peft_models import QUIET, adapted, converted, marked, output, peft, stirred
from torch import nn

import milkweed as mw
from milkweed.nn import BlockDiagonalLinear, ConcatLinear, LowRankLinear, MonarchLinear, PixelflyLinear

pytestmark = QUIET
METHODS = {
    "lora": lambda **kw: peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear", **kw}),
    "monarch": lambda **kw: mw.MonarchAdapterConfig(
        **{"nblocks": 4, "r": 2, "lora_alpha": 3, "target_modules": "all-linear", **kw}
    ),
    "other blocks": lambda **kw: mw.MonarchAdapterConfig(
        **{"nblocks": 3, "r": 1, "target_modules": "all-linear", **kw}
    ),
}
LAYERS = {
    "Monarch": lambda: MonarchLinear(32, 32, nblocks=4, rank=2),
    "default rank": lambda: MonarchLinear(33, 45, nblocks=4, bias=False),
    "low rank": lambda: LowRankLinear(33, 20, rank=2),
    "Pixelfly": lambda: PixelflyLinear(32, 48, nblocks=4, rank=2),
    "packed": lambda: ConcatLinear([MonarchLinear(32, 32), LowRankLinear(32, 17, rank=2), MonarchLinear(32, 17)]),
}


def one_layer(layer):
    model = nn.ModuleDict({"layer": layer})
    model.forward = lambda x: model["layer"](x)
    return model


def dense(layer):
    return layer.to_linear().weight.double()


def delta(layer):
    """The update by its definition, in float64."""
    if hasattr(layer, "lora_A"):
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        return layer.scaling["default"] * b @ a
    return layer.scaling["default"] * copy.deepcopy(layer.monarch_update["default"]).double().to_linear().weight


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("marker", [False, True])
def test_the_weight_is_the_sum(kind, method, marker):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    if marker and kind != "low rank":
        layer.register_buffer("weight", torch.zeros(1))
    tuned = adapted(nn.Sequential(nn.Identity(), one_layer(layer)), METHODS[method](target_modules=["layer"]))
    inner = tuned.base_model.model[1]["layer"]
    before, expected = copy.deepcopy(tuned.state_dict()), dense(layer) + delta(inner)
    tuned.merge_adapter()
    assert type(inner.base_layer) is type(layer)
    torch.testing.assert_close(dense(inner.base_layer), expected, rtol=1e-6, atol=2e-6)
    assert not any(p.requires_grad for p in inner.base_layer.parameters())
    tuned.unmerge_adapter()
    after = tuned.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    merged = tuned.merge_and_unload()[1]["layer"]
    torch.testing.assert_close(dense(merged), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_models(family, method, tmp_path):
    model, batch = converted(family)
    tuned = adapted(
        model,
        METHODS[method](target_modules=["query", "output.dense", "c_attn", "c_proj", "c_fc"]),
    )
    expected = output(tuned, batch)
    tuned.merge_adapter()
    torch.testing.assert_close(output(tuned, batch), expected, rtol=1e-5, atol=2e-6)
    with tuned.disable_adapter():
        assert torch.equal(output(tuned, batch), output(model, batch))
    assert torch.equal(output(tuned, batch), expected)  # disabled adapters are no longer merged, as in peft
    merged = tuned.merge_and_unload()
    after = output(merged, batch)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=2e-6)
    # The result is a converted model like any other: its layers say their new ranks.
    assert {type(m) for m in merged.modules()} == {type(m) for m in model.modules()}
    mw.save_pretrained(merged, tmp_path)
    again = mw.load_pretrained(tmp_path).eval()
    assert torch.equal(output(again, batch), after)
    second = peft.get_peft_model(again, METHODS[method](target_modules=["output.dense", "c_fc"]))
    assert torch.equal(output(second.eval(), batch), after)


def test_double_precision_has_no_error_to_speak_of():
    model, batch = converted()
    tuned = adapted(model.double(), METHODS["lora"](target_modules=["query", "intermediate.dense"])).double()
    expected = output(tuned, batch)
    tuned.merge_adapter()
    torch.testing.assert_close(output(tuned, batch), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_several_adapters_one_after_the_other(method):
    model, batch = converted()
    tuned = adapted(model, METHODS[method](target_modules=["query", "value"]))
    tuned.add_adapter("second", METHODS[method](target_modules=["value", "intermediate.dense"], lora_alpha=1))
    tuned.base_model.set_adapter(["default", "second"])
    expected = output(stirred(tuned), batch)
    tuned.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged default"):
        tuned.merge_adapter(["second"])
    torch.testing.assert_close(output(tuned, batch), expected, rtol=1e-5, atol=1e-5)
    copied = copy.deepcopy(tuned)
    for each in (tuned, copied):
        each.unmerge_adapter()
        assert torch.equal(output(each, batch), expected)
    for name, expected_names in (("default", ["default"]), ("second", ["second"])):
        tuned.base_model.set_adapter(name)
        alone = output(tuned, batch)
        merged = copy.deepcopy(tuned).merge_and_unload(adapter_names=expected_names)
        torch.testing.assert_close(output(merged, batch), alone, rtol=1e-5, atol=1e-5)


def test_half_precision_is_rounded_once():
    model, batch = converted()
    tuned = adapted(model.bfloat16(), METHODS["lora"](target_modules=["query", "intermediate.dense"]))
    layer = tuned.base_model.model.encoder.layer[0].intermediate.dense
    before, expected = dense(layer.base_layer), output(tuned, batch).float()
    change = delta(layer)
    tuned.merge_adapter()
    assert layer.base_layer.right.dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    wide = copy.deepcopy(layer.base_layer).float()
    assert (dense(wide) - before - change).norm() < 2 * eps * change.norm()
    assert (output(tuned, batch).float() - expected).norm() < 0.02 * expected.norm()


def test_a_model_that_is_cast_in_between_goes_back_in_its_new_dtype():
    model, batch = converted()
    tuned = adapted(model, METHODS["lora"](target_modules=["query"]))
    expected = output(tuned, batch)
    tuned.merge_adapter()
    tuned.double().unmerge_adapter()
    assert {p.dtype for p in tuned.parameters()} == {torch.float64}
    torch.testing.assert_close(output(tuned, batch).float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "monarch"])
def test_what_has_no_rank_is_refused_and_stays(method):
    model, x = nn.Sequential(MonarchLinear(16, 16), BlockDiagonalLinear(16, 16)), torch.randn(3, 16)
    tuned = adapted(model, METHODS[method](r=1, target_modules=["0", "1"]))
    expected = tuned(x)
    message = r"adapters cannot be merged into a BlockDiagonalLinear: .*densify_\(model\)"
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(ValueError, match=message):
            merge()
        assert torch.equal(tuned(x), expected)
    mw.densify_(tuned)
    torch.testing.assert_close(tuned.merge_and_unload()(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "monarch"])
@pytest.mark.parametrize("safe", [False, True])
def test_numbers_that_are_not_finite_are_refused(method, safe):
    model, x = nn.Sequential(MonarchLinear(16, 16)), torch.randn(3, 16)
    tuned = adapted(model, METHODS[method](r=1, target_modules=["0"]))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="adapter default cannot be merged: the sum has NaN or infinite numbers"):
        tuned.merge_adapter(safe_merge=safe)
    with tuned.disable_adapter():
        assert torch.equal(tuned(x), model(x))


def test_merging_twice_and_unmerging_twice_only_warn():
    model, x = nn.Sequential(MonarchLinear(16, 16)), torch.randn(3, 16)
    tuned = adapted(model, METHODS["lora"](r=1, target_modules=["0"]))
    tuned.merge_adapter()
    expected = tuned(x)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        tuned.merge_adapter()
    assert torch.equal(tuned(x), expected)
    tuned.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        tuned.unmerge_adapter()


def test_variants_that_change_a_weight_are_not_merged():
    model, _ = converted("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], velora_config=peft.tuners.lora.VeloraConfig(num_groups=4))
    tuned = adapted(model, config)
    with pytest.raises(ValueError, match=r"adapter 'default' cannot be merged into a MonarchLinear: .*densify_"):
        tuned.merge_adapter()


def test_a_marked_layer_keeps_its_mark():
    model, _ = converted("gpt2")
    tuned = adapted(marked(model), METHODS["lora"]())
    merged = tuned.merge_and_unload()
    assert merged.transformer.h[0].attn.c_attn.weight.shape == (1,)
    assert merged.transformer.h[0].mlp.c_fc.weight.shape == (1,)


def test_an_adapted_model_is_not_saved_as_a_converted_one(tmp_path):
    model, _ = converted()
    tuned = adapted(model, METHODS["monarch"]())
    with pytest.raises(TypeError, match="model is peft's PeftModel"):
        mw.save_pretrained(tuned, tmp_path)
    with pytest.raises(ValueError, match=r"the model has adapters of PEFT: .*merge_and_unload\(\) first"):
        mw.save_pretrained(tuned.base_model.model, tmp_path)
