"""Models of every family: converted by the default rules, saved, loaded, generated with, exported, made dense again."""

import copy
import types

import pytest
import torch
from tests.convert.family_table import FAMILIES, GENERATING, T, batch, build, hidden, output
from torch import nn

import milkweed as mw
from milkweed.convert.experts import experts_apart
from milkweed.convert.packed import part_sizes
from milkweed.convert.passes.order import find_feed_forwards, is_free, reordered
from milkweed.convert.sites import find_sites
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


@pytest.fixture(autouse=True)
def _quiet():
    logging = T.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity_warning()
    logging.enable_progress_bar()


def converted(name):
    model = build(name)
    mw.convert_(model, mw.MonarchConfig(4))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_rules_find_the_right_layers(name):
    family, model = FAMILIES[name], build(name)
    count = sum(p.numel() for p in model.parameters())
    report = mw.convert_(model, mw.MonarchConfig(4))
    assert (len(report.converted), len(report.layers)) == (family.converted, family.layers)
    assert report.model_parameters == count
    assert report.model_parameters_after == sum(p.numel() for p in model.parameters())
    stay = {line.name.rpartition(".")[2] for line in report.layers if line.layer is None}
    heads = {"classifier", "lm_head", "proj_out", "visual_projection", "text_projection", "pre_classifier"}
    assert stay <= heads | {"dense", "out_proj"}  # dense: of poolers and of heads of two layers
    packed = {module: layer for module, layer in model.named_modules() if isinstance(layer, ConcatLinear) and module}
    for path, layer in packed.items():
        assert [part.out_features for part in layer.parts] == family.packed[path.rpartition(".")[2]]
    assert {path.rpartition(".")[2] for path in packed} == family.packed.keys()
    assert output(model, batch(name)).isfinite().all()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_calibrated_it_gives_nearly_the_same(name):
    dense = build(name)
    batches = [batch(name, seed) for seed in range(1, 9)]
    expected, errors = hidden(dense, batches[0]), []
    for calibration in (None, batches):
        model = copy.deepcopy(dense)
        mw.convert_(model, mw.plan_conversion(model, mw.MonarchConfig(2, rank=12), calibration, tokens=None))
        errors.append((hidden(model, batches[0]) - expected).norm() / expected.norm())
    assert errors[1] < errors[0]
    assert errors[1] < 0.25


@pytest.mark.sampled
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_in_pieces_loaded_and_made_dense(name, tmp_path):
    model, inputs = converted(name), batch(name)
    expected = output(model, inputs)
    model.save_pretrained(tmp_path / "folder", max_shard_size="20kB")
    loaded, report = type(model).from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(output(loaded, inputs), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(output(mw.load_pretrained(tmp_path / "folder"), inputs), expected, rtol=0, atol=1e-6)
    # The dense folder is one that transformers reads alone: nothing in it is milkweed's.
    mw.densify_(loaded)
    loaded.save_pretrained(tmp_path / "dense")
    again, report = type(model).from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(report.values())
    assert not any(isinstance(layer, StructuredLinear) for layer in again.modules())
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in build(name).state_dict().items()
    }
    torch.testing.assert_close(output(again, inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_loaded_in_half_precision(name, dtype, tmp_path):
    dense, model = build(name), converted(name)
    for each, place in ((dense, "dense"), (model, "folder")):
        each.save_pretrained(tmp_path / place)
    found = type(model).from_pretrained(tmp_path / "folder", dtype=dtype)
    state = model.state_dict()
    assert all(torch.equal(v.to(dtype), state[k].to(dtype)) for k, v in found.state_dict().items())
    # Some families keep some layers wide; the factors then are as wide as the dense weights would be.
    alone = dict(type(model).from_pretrained(tmp_path / "dense", dtype=dtype).named_modules())
    for path, layer in found.named_modules():
        if isinstance(layer, StructuredLinear | ConcatLinear) and type(alone.get(path)) is nn.Linear:
            assert {p.dtype for p in layer.parameters()} == {p.dtype for p in alone[path].parameters()}
    if name == "deberta":  # dense or not: transformers keeps biases wide that it adds to narrow numbers
        return
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch(name).items()}
    assert output(found, inputs).dtype in {dtype, torch.float32}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "clip"])
def test_the_model_under_a_head_and_back(name, tmp_path):
    model, inputs = converted(name), batch(name)
    expected = hidden(model, inputs)
    model.save_pretrained(tmp_path / "head")
    base = T.AutoModel.from_pretrained(tmp_path / "head")
    if type(base) is not type(model) and not name.startswith("t5"):
        torch.testing.assert_close(hidden(base, inputs), expected, rtol=0, atol=1e-6)
    base.save_pretrained(tmp_path / "base")
    again = type(model).from_pretrained(tmp_path / "base")
    torch.testing.assert_close(hidden(again, inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", GENERATING)
def test_it_generates_the_same_with_a_cache_and_without(name, tmp_path):
    model = converted(name)
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    inputs = {k: v for k, v in batch(name).items() if not k.startswith("decoder")}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if name == "whisper":
        options["attention_mask"] = torch.ones(3, 20, dtype=torch.long)
    found = [
        each.generate(**inputs, **options, use_cache=cache) for each, cache in ((model, 1), (model, 0), (loaded, 1))
    ]
    assert found[0].shape[1] >= 6
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_units_can_be_reordered(name):
    model, inputs = build(name), batch(name)
    expected = output(model, inputs)
    with experts_apart(model):
        sites = {site.name: site for site in find_sites(model)}
        pairs = find_feed_forwards(sites, dict.fromkeys(sites, mw.MonarchConfig(2)))
        assert len(pairs) == FAMILIES[name].reordered
        orders = {pair: torch.randperm(sites[pair.reader].in_features) for pair in pairs}
        with reordered(model, sites, orders):
            torch.testing.assert_close(output(model, inputs), expected, rtol=1e-4, atol=1e-4)
        assert is_free(model, pairs[0], sites, [inputs])


class Positional(nn.Module):
    """A model called with tensors in the order of a batch, which gives its outputs only."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if model.can_generate() else {}

    def forward(self, *tensors):
        found = self.model(**dict(zip(self.names, tensors, strict=True)), **self.options)
        return found.logits_per_image if "logits_per_image" in found else found.logits


def exportable(name):
    """A converted model, its inputs, and which of their sizes may change."""
    inputs = batch(name)
    rows, length = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("length", min=2, max=15)
    fixed = {"pixel_values", "input_features"}
    sizes = tuple({0: rows} if key in fixed else {0: rows, 1: length} for key in inputs)
    smaller = tuple(v[:2] if key in fixed else v[:2, 2:] for key, v in inputs.items())
    return Positional(converted(name), list(inputs)), tuple(inputs.values()), sizes, smaller


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_exports_with_any_number_of_rows_and_any_length(name):
    model, inputs, sizes, smaller = exportable(name)
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=(sizes,), strict=False).module()
        torch.testing.assert_close(program(*smaller), model(*smaller), rtol=1e-5, atol=1e-5)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_runs_in_onnx_runtime(name, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    # Compared with torch at sizes that were not traced, with padding.
    done = mw.convert.export_onnx(converted(name), tmp_path / "model.onnx")
    parts = ["encoder_", "decoder_"] if name in {"t5", "t5_gated", "whisper"} else [""]
    assert [file.path.name for file in done.files] == [f"{part}model.onnx" for part in parts]
    assert all(file.path.is_file() and file.difference < 1e-5 for file in done.files)


class Parent(nn.Module):
    """A module with attributes of its own or in a config."""

    def __init__(self, config, **options):
        super().__init__()
        self.config = types.SimpleNamespace(**config)
        for name, value in options.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("parent", "name", "sizes", "expected"),
    [
        (Parent({"num_attention_heads": 8, "num_key_value_heads": 2}, head_dim=4), "qkv_proj", (64, 48), (32, 8, 8)),
        (Parent({}, num_heads=4, num_kv_heads=1), "query_key_value", (32, 48), (32, 8, 8)),
        (Parent({"num_attention_heads": 2}, head_dim=20), "qkv", (32, 120), (40, 40, 40)),
        (nn.Module(), "c_attn", (32, 96), (32, 32, 32)),
        # Of Mamba, which holds two; and keys and values alone, of GPT-2 where it looks at an encoder.
        (nn.Module(), "in_proj", (24, 96), (96,)),
        (Parent({"n_head": 4}), "c_attn", (24, 48), (48,)),
        (Parent({}, down_proj=nn.Linear(30, 8)), "gate_up_proj", (8, 60), (30, 30)),
        (Parent({}, down_proj=nn.Linear(60, 8)), "gate_up_proj", (8, 60), (60,)),
        (nn.Module(), "Wi", (8, 60), (60,)),
        (nn.Module(), "dense", (32, 96), (96,)),
    ],
)
def test_matrices_that_share_a_layer(parent, name, sizes, expected):
    assert part_sizes(parent, name, *sizes) == expected
