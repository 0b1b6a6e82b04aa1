"""A plan lists all that stays, with its size and reason, and converts nothing that gains nothing."""

import json

import pytest
import torch
from torch import nn

import milkweed as mw
from milkweed.convert import BlockDiagonalConfig, LowRankConfig, PixelflyConfig


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up, self.down = nn.Parameter(torch.randn(8, 32, 64)), nn.Parameter(torch.randn(8, 32, 32))


def mixture():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(100, 32), "conv": nn.Conv1d(32, 32, 3), "rnn": nn.LSTM(32, 8)})
    model["blocks"] = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(32, 64), "mlp": Experts()}) for _ in range(2))
    model["old"], model["norm"], model["lm_head"] = mw.nn.MonarchLinear(32, 32), nn.LayerNorm(32), nn.Linear(32, 100)
    model["lm_head"].weight = model["embed"].weight
    return model


def test_every_matrix_is_listed_once_with_its_size_and_reason(tmp_path):
    model = mixture()
    report = mw.plan_conversion(model, mw.MonarchConfig(4), tokens=None).report
    lines = {name: line for line in (*report.layers, *report.kept) for name in line.names}
    matrices = {n.removesuffix(".weight"): p for n, p in model.named_parameters() if p.ndim > 1}
    for name, parameter in matrices.items():
        line = lines.get(name) or lines[f"{name}.weight"]
        assert line.reason or line.layer
        assert getattr(line, "shape", None) in {None, tuple(parameter.shape)}
    reasons = {line.name: line.reason for line in report.kept}
    assert "an embedding" in reasons["embed.weight"]
    assert "the weight of lm_head too" in reasons["embed.weight"]
    assert "8 matrices in one tensor (Experts)" in reasons["blocks.1.mlp.gate_up"]
    assert "a convolution (Conv1d)" in reasons["conv.weight"]
    assert "LSTM" in reasons["rnn.weight_hh_l0"]
    assert "structured already" in reasons["old.left"]
    assert not any("norm" in name or "bias" in name for name in reasons)
    text = str(report)
    assert "blocks.0-1.mlp.gate_up, 2 matrices" in text
    assert f"{2 * 8 * 32 * 64:,}" in text
    linear = 2 * (32 * 64 + 64) + 100 * 32 + 100
    whole = sum(p.numel() for p in model.parameters())
    assert report.share == pytest.approx(linear / whole)
    assert f"{report.share:.0%} of all parameters" in text
    assert "blocks.0.mlp.gate_up with 16,384 numbers" in " ".join(report.warnings)
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert {line["names"][0] for line in saved["kept"]} == set(reasons)


def quantised():
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(16, 32), nn.LSTM(8, 8), nn.Linear(32, 64)]).eval()
    kinds = dict.fromkeys("01", torch.ao.quantization.default_dynamic_qconfig)
    return torch.ao.quantization.quantize_dynamic(model, qconfig_spec=kinds)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantised_layers_are_mentioned_though_they_have_no_parameters():
    model = quantised()
    report = mw.convert_(model, mw.MonarchConfig(4))
    assert [line.name for line in report.converted] == ["2"]
    kept = {line.name: line for line in report.kept}
    assert kept["0.weight"].shape == (32, 16)
    assert kept.keys() == {"0.weight", "1.weight_ih_l0", "1.weight_hh_l0"}
    assert all("quantised" in line.reason for line in kept.values())
    assert report.share == pytest.approx(2112 / (2112 + 512 + 2 * 256))
    with pytest.raises(ValueError, match=r"no linear layers; its largest matrix is 0.weight: it is quantised"):
        mw.plan_conversion(quantised()[:2])


def test_weights_stored_as_integers_are_quantised():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("qweight", torch.zeros(4, 16, dtype=torch.int32))
            self.register_buffer("mask", torch.zeros(9, 9, dtype=torch.bool))
            self.blocks = nn.Parameter(torch.zeros(2, 3, 4, dtype=torch.uint8), requires_grad=False)

    model = nn.ModuleDict({"a": Packed(), "b": nn.Linear(32, 64)})
    kept = mw.plan_conversion(model, mw.MonarchConfig(4), tokens=None).report.kept
    assert {line.name for line in kept} == {"a.qweight", "a.blocks"}
    assert all("quantised" in line.reason for line in kept)


@pytest.mark.parametrize(
    "config",
    [mw.MonarchConfig(2), LowRankConfig(16), LowRankConfig(30), PixelflyConfig(2, rank=8), mw.MonarchConfig(1)],
)
@pytest.mark.parametrize("rule", ["re:.*", nn.Linear, lambda *_: True], ids=["pattern", "class", "function"])
def test_what_saves_nothing_stays_unless_it_is_named(config, rule):
    model = nn.ModuleDict({"square": nn.Linear(32, 32), "wide": nn.Linear(32, 256)})
    rules = [("wide", mw.MonarchConfig(4)), (rule, config)]
    report = mw.plan_conversion(model, rules, tokens=None).report
    assert [line.name for line in report.converted] == ["wide"]
    assert "saves nothing" in report.layers[0].reason
    assert "name the layer exactly" in report.layers[0].reason
    named = mw.plan_conversion(model, [("square", config), *rules], tokens=None).report
    assert [line.name for line in named.converted] == ["square", "wide"]
    assert named.layers[0].parameters_after >= named.layers[0].parameters_before


def test_what_saves_little_is_converted():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 64))
    report = mw.convert_(model, {"re:.*": BlockDiagonalConfig(2)})
    assert len(report.converted) == 2
    assert len(mw.convert_(nn.Sequential(nn.Linear(32, 32)), mw.MonarchConfig(3)).converted) == 1


def test_where_nothing_becomes_smaller_the_rule_is_taken_at_its_word():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    report = mw.plan_conversion(model, mw.MonarchConfig(2), tokens=None).report
    assert len(report.converted) == 2
    assert "no layer becomes smaller" in str(report)


def test_a_packed_layer_is_judged_by_its_parts():
    model = nn.ModuleDict({"qkv": nn.Linear(32, 96), "up": nn.Linear(32, 96)})
    report = mw.plan_conversion(model, {"re:.*": mw.MonarchConfig(2)}, tokens=None).report
    assert [line.name for line in report.converted] == ["up"]


SIZES = [(7, 13), (13, 7), (31, 37), (17, 17), (5, 257), (97, 5), (1, 1), (1, 64), (64, 1), (2, 2)]


@pytest.mark.parametrize(
    "config", [mw.MonarchConfig(4), mw.MonarchConfig(9), BlockDiagonalConfig(16), LowRankConfig(4), PixelflyConfig(8)]
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_layer_that_is_too_small_is_skipped_under_a_pattern_and_refused_by_name(config, calibrated):
    class Parallel(nn.ModuleDict):
        def forward(self, *inputs):
            return [layer(x) for layer, x in zip(self.values(), inputs, strict=True)]

    torch.manual_seed(0)
    model = Parallel({f"l{i}": nn.Linear(*sizes, bias=i % 2 == 0) for i, sizes in enumerate([*SIZES, (128, 128)])})
    batch = tuple(torch.randn(50, sizes[0]) for sizes in [*SIZES, (128, 128)])
    report = mw.plan_conversion(model, config, [batch] if calibrated else None, tokens=None).report
    assert report.layers[-1].layer
    small = [line for line in report.layers if "cannot become" in (line.reason or "")]
    for line in small:
        with pytest.raises(ValueError, match=rf"layer '{line.name}' cannot become .*None}}"):
            mw.plan_conversion(model, {line.name: config}, tokens=None)
    converted = mw.convert_(model, {"re:.*": config}).converted
    assert [line.name for line in converted] == [line.name for line in report.converted]


def test_under_a_budget_too_small_and_useless_candidates_are_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 2), nn.Linear(2, 32)).eval()
    batches = [torch.randn(40, 32)]
    candidates = [mw.MonarchConfig(2), mw.MonarchConfig(8)]
    report = mw.plan_conversion(model, None, batches, parameters=0.99, candidates=candidates, tokens=None).report
    assert [line.layer for line in report.layers[2:]] == [None, None]
    assert report.layers[0].layer is None
    assert {line.reason for line in report.layers if not line.layer} == {"no candidate that fits it saves anything"}
    assert report.converted
    with pytest.raises(ValueError, match="none of the candidates fits layer '2'"):
        mw.plan_conversion(model, {"2": candidates[0]}, batches, parameters=0.9, candidates=candidates)


def test_a_class_stands_for_its_layers():
    model = nn.ModuleDict({"a": nn.Linear(32, 64), "b": nn.Linear(32, 64)})
    assert len(mw.plan_conversion(model, {nn.Linear: mw.MonarchConfig()}, tokens=None).report.converted) == 2
    with pytest.raises(ValueError, match="rule 'Conv2d' matches none"):
        mw.plan_conversion(model, {nn.Conv2d: mw.MonarchConfig()})
