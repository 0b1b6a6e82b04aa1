"""Whole models: planned, converted, saved, loaded and made dense again."""

import copy

import pytest
import torch
from tests.convert.families import BUILDERS, CONVERTED, batches, build, output
from torch import nn

import milkweed as mw
from milkweed.convert import BlockDiagonalConfig, LowRankConfig, PixelflyConfig, default_rules
from milkweed.nn import MonarchLinear
from milkweed.nn.structured_linear import ConcatLinear


@pytest.mark.sampled
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_there_and_back(family, sequential, tmp_path):
    model, inputs = build(family), batches(family)
    converted = copy.deepcopy(model)
    plan = mw.plan_conversion(converted, mw.MonarchConfig(3), inputs, sequential=sequential, tokens=None)
    report = mw.convert_(converted, plan)
    assert (len(report.converted), len(report.layers)) == CONVERTED[family]
    assert report.model_parameters == sum(p.numel() for p in model.parameters())
    assert report.model_parameters_after == sum(p.numel() for p in converted.parameters()) < report.model_parameters
    expected, found = output(model, inputs[0]), output(converted, inputs[0])
    assert (found - expected).norm() < 0.5 * expected.norm()

    mw.save_pretrained(converted, tmp_path / "monarch")
    torch.testing.assert_close(output(mw.load_pretrained(tmp_path / "monarch"), inputs[0]), found)

    names = mw.densify_(converted)
    assert set(names) == {name for line in report.converted for name in line.names}
    torch.testing.assert_close(output(converted, inputs[0]), found, rtol=1e-5, atol=1e-5)
    # transformers itself reads the dense model: packed layers are transposed as its architecture wants them.
    converted.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(output(type(model).from_pretrained(tmp_path / "dense").eval(), inputs[0]), found)


def test_a_folder_holds_one_model(tmp_path):
    model = build("bert")
    mw.save_pretrained(model, tmp_path)
    before = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    mw.convert_(model, mw.MonarchConfig(2))
    mw.save_pretrained(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    found = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    mw.densify_(model)
    mw.save_pretrained(model, tmp_path / "dense")
    assert {path.name for path in (tmp_path / "dense").iterdir()} == {"config.json", "model.safetensors"}


def test_t5_asks_for_the_dtype_of_a_weight():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    tokens = torch.arange(5)[None]
    batches = [{"input_ids": tokens, "decoder_input_ids": tokens + shift} for shift in range(4)]
    several = [None, mw.MonarchConfig(2), mw.MonarchConfig(4)]
    # Also while it is planned: there layers stand in for others, and hidden units are tried in another order.
    for options in ({}, {"sequential": True}, {"permute": True}, {"parameters": 0.7, "candidates": several}):
        converted = copy.deepcopy(model)
        plan = mw.plan_conversion(converted, {"re:.*DenseReluDense.*": mw.MonarchConfig(2)}, batches, **options)
        report = mw.convert_(converted, plan)
        assert "encoder.block.0.layer.1.DenseReluDense.wo" in {line.name for line in report.converted}
        assert converted(input_ids=tokens, labels=tokens).loss.isfinite()
    # In a part that is no model of transformers' too.
    part = nn.Sequential(copy.deepcopy(model.encoder.block[0].layer[1]))
    mw.convert_(part, mw.MonarchConfig(4))
    assert part.half()(torch.randn(1, 3, 32).half()).dtype == torch.float16


def test_tied_embeddings_stay_tied(tmp_path):
    model = build("gpt2")
    report = mw.convert_(model, {"re:.*": mw.MonarchConfig(2)})
    (head,) = [line for line in report.layers if line.name == "lm_head"]
    assert "tied to transformer.wte" in head.reason
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_tensor_with_three_names_is_loaded_under_all(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    mw.convert_(model, mw.MonarchConfig(4, rank=1))
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert loaded.encoder.embed_tokens.weight is loaded.decoder.embed_tokens.weight is loaded.shared.weight
    inputs = {"input_ids": torch.arange(6)[None], "decoder_input_ids": torch.arange(4)[None]}
    assert torch.equal(output(loaded, inputs), output(model, inputs))


def test_a_packed_layer_becomes_three_matrices():
    model = build("gpt2")
    weight, bias = (p.detach().clone() for p in model.transformer.h[0].attn.c_attn.parameters())
    mw.convert_(model, {"re:.*c_attn": mw.MonarchConfig(1, rank=32)})
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, ConcatLinear)
    assert [part.out_features for part in layer.parts] == [32, 32, 32]
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), x @ weight + bias, rtol=1e-4, atol=1e-5)  # one block of full rank is exact


@pytest.mark.parametrize("config", [LowRankConfig(8), BlockDiagonalConfig(2), PixelflyConfig(4, rank=4)])
def test_other_structures(config, tmp_path):
    model, inputs = build("bert"), batches("bert")
    report = mw.convert_(model, mw.plan_conversion(model, config, inputs, tokens=None))
    assert {line.layer["name"] for line in report.converted} == {config.name}
    mw.save_pretrained(model, tmp_path)
    torch.testing.assert_close(output(mw.load_pretrained(tmp_path), inputs[0]), output(model, inputs[0]))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24, bias=False))


def test_any_module_loads_into_its_dense_architecture(tmp_path):
    model = network()
    mw.convert_(model, mw.MonarchConfig(2))
    mw.save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="model of your own"):
        mw.load_pretrained(tmp_path)
    loaded = mw.load_pretrained(tmp_path, into=network())
    x = torch.randn(5, 24)
    torch.testing.assert_close(loaded(x), model(x))
    with pytest.raises(ValueError, match="do not fit"):
        mw.load_pretrained(tmp_path, into=nn.Sequential(nn.Linear(24, 48)))


def test_a_milkweed_model_keeps_its_conversion(tmp_path):
    model = mw.models.MlpMixer(1, 3, 16, d_model=32, depth=1, linear={"name": "dense"}).eval()
    report = mw.convert_(model, {"re:.*channels.*": mw.MonarchConfig(2)})
    assert report.converted
    mw.save_pretrained(model, tmp_path)
    x = torch.randn(2, 16, 1)
    torch.testing.assert_close(mw.load_pretrained(tmp_path)(x), model(x))


def test_a_model_made_dense_loads_as_such(tmp_path):
    model = mw.models.MlpMixer(1, 3, 16, d_model=32, depth=2, linear={"name": "monarch", "nblocks": 2}).eval()
    mw.densify_(model)
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert not any(isinstance(m, MonarchLinear) for m in loaded.modules())
    x = torch.randn(2, 16, 1)
    torch.testing.assert_close(loaded(x), model(x))


def test_device_dtype_mode_and_gradients_are_kept():
    model = network().to(torch.bfloat16)
    model[2].eval()
    model[0].weight.requires_grad_(False)
    mw.convert_(model, mw.MonarchConfig(2))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model[0].training
    assert not model[2].training
    assert not model[0].right.requires_grad
    assert model[0].bias.requires_grad


def test_meta_models_are_planned_and_converted_without_numbers():
    with torch.device("meta"):
        model = network()
    plan = mw.plan_conversion(model, mw.MonarchConfig(2))
    assert all(line.relative_error is None and line.speedup is None for line in plan.report.converted)
    assert mw.convert_(model, plan).model_parameters_after == sum(p.numel() for p in model.parameters())
    assert isinstance(model[0], MonarchLinear)
    assert model[0].right.is_meta


def test_a_module_used_twice_is_converted_once():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = mw.convert_(model, mw.plan_conversion(model, mw.MonarchConfig(2), [torch.randn(40, 16)], sequential=True))
    assert [line.names for line in report.layers] == [("0", "2")]
    assert model[0] is model[2]
    assert mw.densify_(model) == ["0", "2"]
    assert model[0] is model[2]


def test_what_cannot_be_converted_says_why():
    class Quantised(nn.Linear):
        pass

    parts = {
        "attention": nn.MultiheadAttention(8, 2),
        "encoder": nn.TransformerEncoderLayer(8, 2, 16),
        "custom": Quantised(8, 8),
        "hooked": nn.Linear(8, 8),
        "plain": nn.Linear(8, 8),
    }
    parts["hooked"].register_forward_hook(lambda *_: None)
    model = nn.ModuleDict(parts)
    reasons = {line.name: line.reason for line in mw.plan_conversion(model, mw.MonarchConfig(2)).report.layers}
    assert reasons["plain"] is None
    assert "Quantised, which may compute more" in reasons["custom"]
    assert "hooks" in reasons["hooked"]
    assert "reads the weight itself" in reasons["encoder.linear1"]
    assert "NonDynamicallyQuantizableLinear" in reasons["attention.out_proj"]
    with pytest.raises(TypeError, match="'custom' cannot be converted"):
        mw.plan_conversion(model, {"custom": mw.MonarchConfig(2)})


def test_default_rules_keep_heads():
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "lm_head": nn.Linear(8, 8), "classifier": nn.Linear(8, 8)})
    plan = mw.plan_conversion(model, default_rules(mw.MonarchConfig(2)), tokens=None)
    assert [line.name for line in plan.report.converted] == ["body"]


def test_the_first_matching_rule_wins():
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16), "c": nn.Linear(16, 16)})
    rules = [
        ("a", None),
        (lambda name, module: name == "b", mw.MonarchConfig(3)),
        ("re:[abc]", mw.MonarchConfig(4)),
    ]
    lines = mw.plan_conversion(model, rules, tokens=None).report.layers
    assert [line.layer and line.layer["nblocks"] for line in lines] == [None, 3, 4]


def test_the_plan_prints_as_a_table():
    plan = mw.plan_conversion(network(), {"0": mw.MonarchConfig(5)}, [torch.randn(50, 24)], tokens=8)
    text = str(plan)
    assert "48 x 24" in text
    assert "monarch, nblocks 5" in text
    assert "1 in, 2 out" in text
    assert "stays: no rule matches it" in text
    assert "1 of 2 linear layers converted" in text
    assert "slower than dense" in text  # 24 features are far too few


def test_a_long_plan_prints_in_few_lines_of_moderate_width():
    blocks = nn.ModuleList(nn.ModuleDict({"the_name_of_a_module_" * 3: nn.Linear(24, 48)}) for _ in range(30))
    model = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(7, 5), "lonely": nn.Linear(9, 9, bias=False)})
    rules = {"head": None, "re:blocks.*": mw.MonarchConfig(4), "lonely": mw.MonarchConfig(2)}
    plan = mw.plan_conversion(model, rules, tokens=None)
    lines = str(plan).splitlines()
    assert str(plan) == repr(plan) == str(plan.report) == repr(plan.report)
    assert len(lines) < 15
    assert max(map(len, lines)) <= 100
    assert f"blocks.0-29.{'the_name_of_a_module_' * 3}, 30 layers" in lines
    dense, monarch = 30 * (24 * 48 + 48), 30 * (4 * 6 * (6 + 12) + 48)
    assert any(f"{dense:,} -> {monarch:,}" in line for line in lines)
    # lonely: 2 blocks of 5 x 5 in each factor
    total = f"{dense + 81 + 40:,} -> {monarch + 100 + 40:,}"
    assert any(line.startswith("all linear layers") and total in line for line in lines)
    assert "    stays: rule 'head' keeps it" in lines


def test_save_report(tmp_path):
    import json

    report = mw.plan_conversion(network(), mw.MonarchConfig(2)).report
    report.save(tmp_path / "report.json")
    values = json.loads((tmp_path / "report.json").read_text())
    assert [line["layer"]["nblocks"] for line in values["layers"]] == [2, 2]
    assert values["timing"] is None
    report.save(tmp_path / "report.json", timing={"seconds_before": 2.0})
    assert json.loads((tmp_path / "report.json").read_text())["timing"] == {"seconds_before": 2.0}


class TestBadInput:
    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m[2].weight.data.add_(1),
            lambda m: m[0].bias.data.add_(1),
            lambda m: setattr(m[0], "bias", None),
            lambda m: m[2].requires_grad_(False),
            lambda m: m[2].double(),
            lambda m: m.__setitem__(2, nn.Linear(24, 12)),
        ],
        ids=["weight", "bias", "no bias", "frozen", "dtype", "another layer"],
    )
    def test_a_plan_for_layers_that_have_changed(self, change):
        model = network()
        plan = mw.plan_conversion(model, mw.MonarchConfig(2), tokens=None)
        change(model)
        before = [type(m) for m in model]
        with pytest.raises(ValueError, match=r"'[02]' is not what the plan was made for"):
            mw.convert_(model, plan)
        assert [type(m) for m in model] == before

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"nblocks": 0}, ValueError),
            ({"nblocks": 2.5}, TypeError),
            ({"refine": -1}, ValueError),
            ({"rank": True}, TypeError),
        ],
    )
    def test_a_configuration_is_checked_when_it_is_made(self, options, error):
        with pytest.raises(error, match=f"{next(iter(options))} must be"):
            mw.MonarchConfig(**options)

    def test_bad_calibration(self):
        with pytest.raises(TypeError, match="calibration must be an iterable of batches"):
            mw.plan_conversion(network(), None, 5)
        with torch.device("meta"):
            model = network()
        with pytest.raises(ValueError, match="meta device"):
            mw.plan_conversion(model, None, [torch.randn(3, 24, device="meta")])

    def test_a_layer_called_by_keyword(self):
        class Keyword(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(16, 16)

            def forward(self, x):
                return self.inner(input=x)

        with pytest.raises(ValueError, match="'inner' is not called with a tensor as its first argument"):
            mw.plan_conversion(Keyword(), None, [torch.randn(3, 16)])

    def test_a_plan_for_another_model(self):
        plan = mw.plan_conversion(network(), mw.MonarchConfig(2), tokens=None)
        with pytest.raises(ValueError, match="there is no linear layer '0'"):
            mw.convert_(nn.Sequential(nn.ReLU(), nn.Linear(24, 24)), plan)

    def test_what_was_attached_after_planning_is_not_lost(self):
        model = network()
        plan = mw.plan_conversion(model, mw.MonarchConfig(2), tokens=None)
        model[0].register_full_backward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="'0' can no longer be converted: it has hooks"):
            mw.convert_(model, plan)

    def test_a_plan_serves_one_copy_of_its_model(self):
        model = network()
        plan = mw.plan_conversion(model, mw.MonarchConfig(1), tokens=None)
        converted, another = copy.deepcopy(model), copy.deepcopy(model)
        mw.convert_(converted, plan)
        x = torch.randn(3, model[0].in_features)
        torch.testing.assert_close(converted(x), model(x))
        with pytest.raises(ValueError, match="this plan has been carried out"):
            mw.convert_(another, plan)

    @pytest.mark.parametrize("attach", ["register_forward_hook", "register_forward_pre_hook"])
    def test_hooks_are_not_lost_by_densifying(self, attach):
        model = network()
        mw.convert_(model, mw.MonarchConfig(2))
        getattr(model[0], attach)(lambda *_: None)
        with pytest.raises(ValueError, match="'0' cannot be made dense: it has hooks"):
            mw.densify_(model)

    def test_shared_factors_are_not_untied_by_densifying(self):
        model = nn.Sequential(mw.nn.MonarchLinear(16, 16), mw.nn.MonarchLinear(16, 16))
        model[1].right = model[0].right
        with pytest.raises(ValueError, match="cannot be made dense: its factors are shared"):
            mw.densify_(model)

    def test_a_parent_that_reads_the_weight(self):
        class Reads(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 12)

            def forward(self, x):
                return self.outer(nn.functional.linear(x, self.inner.weight))

        report = mw.convert_(nn.Sequential(Reads()), mw.MonarchConfig(2))
        assert [line.name for line in report.converted] == ["0.outer"]
        assert "its parent Reads reads the weight itself" in str(report)

    @pytest.mark.parametrize(
        ("rules", "error", "message"),
        [
            ({"re:.*attention.*": mw.MonarchConfig()}, ValueError, "matches none of the 2 linear layers; near names"),
            ({"1": mw.MonarchConfig()}, ValueError, "'1' matches none"),
            ({"re:(": mw.MonarchConfig()}, ValueError, "malformed"),
            ({}, ValueError, "empty"),
            ("0", TypeError, "rules must map"),
            ([("0",)], TypeError, "rules in a list must be pairs"),
            ([mw.MonarchConfig()], TypeError, "rules in a list must be pairs"),
            ({"0": "monarch"}, TypeError, "must stand for a configuration"),
            ({0: mw.MonarchConfig()}, TypeError, "a rule must be a name"),
            ({"0": None}, ValueError, "nothing to convert"),
            ({"0": mw.MonarchConfig(30)}, ValueError, "layer '0' cannot become monarch"),
            ({"0": mw.MonarchConfig(2, rank=100)}, ValueError, "layer '0' cannot become monarch"),
        ],
    )
    def test_rules(self, rules, error, message):
        model = network()
        with pytest.raises(error, match=message):
            mw.convert_(model, rules)
        assert isinstance(model[0], nn.Linear)

    def test_weights(self):
        model = network()
        model[0].weight.data[3, 5] = torch.nan
        with pytest.raises(ValueError, match=r"layer .0. cannot become .* NaN"):
            mw.plan_conversion(model, mw.MonarchConfig(2))
        model[0].weight = nn.Parameter(torch.eye(48, 24).to_sparse(), requires_grad=False)
        with pytest.raises(TypeError, match="'0' cannot be converted: its weight is quantised or sparse"):
            mw.plan_conversion(model, mw.MonarchConfig(2))

    def test_models(self):
        with pytest.raises(TypeError, match="model must be a torch"):
            mw.plan_conversion({"a": 1})
        with pytest.raises(ValueError, match=r"no linear layers|nothing to convert"):
            mw.plan_conversion(nn.Sequential(nn.ReLU()))
        with pytest.raises(ValueError, match="no structured linear layer"):
            mw.densify_(network())
        with pytest.raises(ValueError, match="to_linear"):
            mw.densify_(MonarchLinear(8, 8, 2))
        with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
            mw.save_pretrained({"a": 1}, "nowhere")
