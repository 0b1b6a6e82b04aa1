"""Converted models are saved and loaded by transformers itself, as quantised ones are."""

import copy
import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
from tests.convert.families import batches, build, output

import milkweed as mw
from milkweed.nn import MonarchLinear
from milkweed.nn.structured_linear import ConcatLinear

transformers = pytest.importorskip("transformers")
logging = transformers.utils.logging


@pytest.fixture(autouse=True)
def _quiet():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity_warning()
    logging.enable_progress_bar()


def converted(family, nblocks=2):
    model = build(family)
    mw.convert_(model, mw.MonarchConfig(nblocks))
    return model


def load(kind, folder, **options):
    model, found = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(found.values()), found
    return model


@pytest.mark.sampled
@pytest.mark.parametrize("family", ["bert", "gpt2", "distilbert", "llama", "vit"])
@pytest.mark.parametrize("shards", ["50GB", "20kB"])
def test_saved_and_loaded_by_transformers(family, shards, tmp_path):
    model, batch = converted(family), batches(family, 1)[0]
    expected = output(model, batch)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors").exists() == (shards == "50GB")
    for found in (load(type(model), tmp_path), mw.load_pretrained(tmp_path)):
        assert type(found) is type(model)
        assert not found.training
        assert torch.equal(output(found, batch), expected)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "milkweed"
    assert len(config["layers"]) == sum(isinstance(m, MonarchLinear | ConcatLinear) for m in model.modules()) - 3 * sum(
        isinstance(m, ConcatLinear) for m in model.modules()
    )
    again = load(type(model), tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(output(load(type(model), tmp_path / "again"), batch), expected)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_one_format_for_both_writers(family, tmp_path):
    model, batch = converted(family), batches(family, 1)[0]
    expected = output(model, batch)
    mw.save_pretrained(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    assert torch.equal(output(load(type(model), tmp_path / "ours"), batch), expected)
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    assert ours == theirs
    assert torch.equal(output(mw.load_pretrained(tmp_path / "theirs"), batch), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loaded_in_half_precision(dtype, tmp_path):
    model = converted("gpt2")
    model.save_pretrained(tmp_path)
    found = load(type(model), tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in found.state_dict().values()} == {dtype}
    batch = batches("gpt2", 1)[0]
    assert torch.equal(output(found, batch), output(copy.deepcopy(model).to(dtype), batch))


def test_base_and_head(tmp_path):
    batch = batches("bert", 1)[0]
    config = build("bert").config
    torch.manual_seed(1)
    head = transformers.BertForSequenceClassification(config).eval()
    mw.convert_(head, mw.MonarchConfig(2))
    expected = head.bert(**batch)[0]
    head.save_pretrained(tmp_path / "head")
    base = transformers.AutoModel.from_pretrained(tmp_path / "head")
    assert torch.equal(base(**batch)[0], expected)
    # The part of a model is one by itself.
    for name, part in (("base", base), ("part", head.bert)):
        part.save_pretrained(tmp_path / name)
        assert torch.equal(load(transformers.BertModel, tmp_path / name)(**batch)[0], expected)
        again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / name)
        assert torch.equal(again.bert(**batch)[0], expected)
    # Saving the part does not change what is written of the whole.
    head.save_pretrained(tmp_path / "whole")
    assert torch.equal(load(type(head), tmp_path / "whole").bert(**batch)[0], expected)


def test_a_part_with_a_config_of_its_own(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=text | {"vocab_size": 50, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config=text | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    mw.convert_(model, mw.MonarchConfig(2))
    batch = {"input_ids": torch.tensor([[1, 5, 9, 2]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    expected = model(**batch).logits_per_image
    model.vision_model.save_pretrained(tmp_path / "vision")
    model.save_pretrained(tmp_path / "both")
    written = json.loads((tmp_path / "both/config.json").read_text())
    assert "quantization_config" not in written["vision_config"]
    both = load(transformers.CLIPModel, tmp_path / "both")
    torch.testing.assert_close(both(**batch).logits_per_image, expected, rtol=1e-6, atol=1e-6)
    vision = load(transformers.CLIPVisionModel, tmp_path / "vision")
    found, expected = (part(batch["pixel_values"])[0] for part in (vision, model.vision_model))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_tied_weights_stay_tied_and_generation_uses_the_cache(tmp_path):
    model = converted("gpt2")
    model.save_pretrained(tmp_path)
    found = load(type(model), tmp_path)
    assert found.lm_head.weight is found.transformer.wte.weight
    tokens = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    generated = [m.generate(tokens, use_cache=cache, **options) for m in (model, found) for cache in (True, False)]
    assert all(torch.equal(each, generated[0]) for each in generated[1:])


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, "disk", "partly"])
def test_device_maps(device_map, tmp_path):
    model, batch = converted("gpt2"), batches("gpt2", 1)[0]
    expected = output(model, batch)
    model.save_pretrained(tmp_path / "model")
    if device_map == "disk":
        device_map = {"": "disk"}
    elif device_map == "partly":
        parts = ("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.ln_f", "lm_head")
        device_map = {**dict.fromkeys(parts, "cpu"), "transformer.h.1": "disk"}
    found = type(model).from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "off")
    assert torch.equal(output(found, batch), expected)


def test_saved_from_the_disk(tmp_path):
    model, batch = converted("gpt2"), batches("gpt2", 1)[0]
    model.save_pretrained(tmp_path / "model")
    found = type(model).from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "off")
    with pytest.warns(UserWarning, match="offloaded modules"):
        found.save_pretrained(tmp_path / "again")
    assert torch.equal(output(load(type(model), tmp_path / "again"), batch), output(model, batch))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_dense_again(family, tmp_path):
    model, batch = converted(family), batches(family, 1)[0]
    expected = output(model, batch)
    model.save_pretrained(tmp_path / "converted")
    found = load(type(model), tmp_path / "converted")
    dense = found.dequantize()
    assert dense is found
    torch.testing.assert_close(output(dense, batch), expected, rtol=0, atol=1e-6)
    mw.densify_(model)
    for name, each in (("dequantised", dense), ("densified", model)):
        each.save_pretrained(tmp_path / name)
        assert "quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())
        torch.testing.assert_close(output(load(type(model), tmp_path / name), batch), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="first quantize your model"):
        dense.dequantize()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_converted_while_it_is_loaded(family, tmp_path):
    model, batch = build(family), batches(family, 1)[0]
    model.save_pretrained(tmp_path / "dense")
    found = type(model).from_pretrained(tmp_path / "dense", quantization_config=mw.MilkweedConfig(nblocks=2))
    mw.convert_(model, mw.convert.default_rules(mw.MonarchConfig(2)))
    assert torch.equal(output(found, batch), output(model, batch))
    assert len(found.hf_quantizer.report.converted) > 0
    found.save_pretrained(tmp_path / "converted")
    assert torch.equal(output(load(type(model), tmp_path / "converted"), batch), output(model, batch))


def test_converted_by_rules_and_batches_while_it_is_loaded(tmp_path):
    model, calibration = build("bert"), batches("bert", 10)
    model.save_pretrained(tmp_path)
    rules = {"re:.*intermediate.dense": mw.MonarchConfig(2)}
    config = mw.MilkweedConfig(rules=rules, calibration=calibration)
    found = transformers.AutoModel.from_pretrained(tmp_path, quantization_config=config)
    mw.convert_(model, mw.plan_conversion(model, rules, calibration))
    torch.testing.assert_close(output(found, calibration[0]), output(model, calibration[0]), rtol=0, atol=1e-6)
    assert "calibration" not in found.config.to_json_string()


def test_projected_in_float32_where_half_precision_is_asked_for(tmp_path):
    model = build("gpt2")
    model.save_pretrained(tmp_path)
    config = mw.MilkweedConfig(nblocks=2)
    found = type(model).from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    mw.convert_(model, mw.convert.default_rules(mw.MonarchConfig(2)))
    model = model.to(torch.bfloat16)
    assert found.dtype == found.config.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_weights_on_the_disk_are_not_converted(tmp_path):
    model = build("gpt2")
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="device_map leaves some on the disk"):
        type(model).from_pretrained(
            tmp_path / "dense",
            quantization_config=mw.MilkweedConfig(nblocks=2),
            device_map={"": "disk"},
            offload_folder=tmp_path / "off",
        )


@pytest.mark.parametrize("kind", ["AutoModel", "BertModel", "SentenceTransformer"])
def test_a_loader_without_milkweed_stops(kind, tmp_path):
    converted("bert").save_pretrained(tmp_path)
    library = "sentence_transformers" if kind == "SentenceTransformer" else "transformers"
    load = (
        f"{kind}({str(tmp_path)!r})" if kind == "SentenceTransformer" else f"{kind}.from_pretrained({str(tmp_path)!r})"
    )
    if kind == "SentenceTransformer":
        pytest.importorskip("sentence_transformers")
        from tests.cli.test_convert import save_tokenizer

        save_tokenizer(tmp_path)
    code = f"import sys\nfrom {library} import {kind}\nassert 'milkweed' not in sys.modules\n{load}\nprint('LOADED')"
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "LOADED" not in ran.stdout
    assert "got milkweed" in ran.stderr
    assert "ignore_mismatched_sizes" in ran.stderr
    assert re.search(r"encoder\.layer\.\S+\.attention\.self\.\S*query\S*\.weight|\.weight\s+\|.*MISMATCH", ran.stderr)


@pytest.mark.parametrize("imports", ["import milkweed, transformers", "import transformers.modeling_utils, milkweed"])
def test_registered_in_either_order_of_imports(imports, tmp_path):
    model = converted("bert")
    model.save_pretrained(tmp_path)
    code = (
        f"{imports}\nfrom transformers import AutoModel\nmodel = AutoModel.from_pretrained({str(tmp_path)!r})\n"
        "print(type(model.encoder.layer[0].output.dense).__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "MonarchLinear"


def test_importing_milkweed_does_not_import_transformers():
    code = (
        "import sys, milkweed\nassert 'transformers' not in sys.modules\nassert 'milkweed.convert' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cast_copied_pickled_and_compiled_like_a_dense_model(tmp_path):
    model, batch = converted("bert"), batches("bert", 1)[0]
    model.save_pretrained(tmp_path)
    found = load(type(model), tmp_path)
    assert found.half().dtype == torch.float16
    assert found.float().dtype == torch.float32
    found = load(type(model), tmp_path)
    expected = output(model, batch)
    for each in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(output(each, batch), expected)
        each.save_pretrained(tmp_path / "again")
        assert torch.equal(output(load(type(model), tmp_path / "again"), batch), expected)
    torch.testing.assert_close(output(torch.compile(found, backend="eager", fullgraph=True), batch), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format of config.json is 2; milkweed .* reads 1; install milkweed"),
        ({"format": "1"}, "format of config.json must be a whole number; got '1'"),
        ({"layers": None}, "must be a list; got None"),
        ({"layers": [], "nblocks": "x"}, "quantization_config of config.json: nblocks must be an integer; got 'x'"),
        ({"layers": "all"}, "must be a list; got 'all'"),
        ({"layers": [{"names": ["encoder.layer.0.output.dense"]}]}, "in_features"),
        ({"layers": [{"names": ["nowhere"], "in_features": 4, "out_features": [4], "layers": [{}]}]}, "none of them"),
    ],
)
def test_a_damaged_record_is_refused(change, message, tmp_path):
    converted("bert").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        transformers.AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        mw.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": 16}, "16 inputs"),
        ({"out_features": [8]}, "8 outputs"),
        (
            {"out_features": [32, 32], "layers": [{"name": "monarch", "nblocks": 2, "bias": True}] * 2},
            "weights hold no",
        ),
        ({"layers": [{"name": "monarch", "nblocks": 10**9, "bias": True}]}, "nblocks"),
        ({"layers": [{"name": "nonsense"}]}, "nonsense"),
        ({"layers": [{"name": "monarch", "nblocks": 4, "bias": True}]}, "mismatched"),
    ],
)
def test_a_damaged_layer_is_refused(change, message, tmp_path):
    converted("bert").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["layers"][0] |= change
    file.write_text(json.dumps(config))
    with pytest.raises((ValueError, RuntimeError), match=message):
        transformers.AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"."):
        mw.load_pretrained(tmp_path)


@pytest.mark.parametrize("lost", ["dense.right", "dense.bias", "dense.weight"])
def test_a_folder_that_lacks_a_factor_is_refused(lost, tmp_path):
    from safetensors.torch import load_file, save_file

    converted("bert").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"encoder.layer.0.intermediate.{lost}"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"weights hold no encoder\.layer\.0\.intermediate\.{lost}"):
        transformers.BertModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"intermediate\.{lost}"):
        mw.load_pretrained(tmp_path)


def test_a_factor_of_whole_numbers_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    converted("bert").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.intermediate.dense.right"] = tensors["encoder.layer.0.intermediate.dense.right"].char()
    save_file(tensors, file, metadata={"format": "pt"})
    for load_it in (transformers.BertModel.from_pretrained, mw.load_pretrained):
        with pytest.raises(ValueError, match=r"dense\.right is torch\.int8"):
            load_it(tmp_path)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_config_with_another_number_of_layers_does_not_fit(layers, tmp_path):
    converted("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(ValueError, match=r"do not fit its config\.json, which describes a converted BertModel"):
        mw.load_pretrained(tmp_path)


def test_the_former_format_is_read(tmp_path):
    # Version 0.1.0 wrote milkweed.safetensors, in which layers had no buffer under the dense weight's name.
    model, batch = converted("gpt2"), batches("gpt2", 1)[0]
    expected = output(model, batch)
    file = mw.save_pretrained(model, tmp_path)
    from safetensors import safe_open

    from milkweed._tensor_files import write_tensors

    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        metadata = stored.metadata()
    file.unlink()
    write_tensors({n: t for n, t in tensors.items() if t.shape != (1,)}, tmp_path / "milkweed.safetensors", metadata)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = mw.load_pretrained(tmp_path)
    assert torch.equal(output(found, batch), expected)
    with pytest.raises(ValueError, match="bring it up to date once"):
        mw.convert_folder(tmp_path, None)
    mw.save_pretrained(found, tmp_path)
    assert not (tmp_path / "milkweed.safetensors").exists()
    assert torch.equal(output(load(type(model), tmp_path), batch), expected)


def test_a_model_with_adapters_is_not_saved_as_converted(tmp_path):
    model = converted("bert")
    mw.add_adapters_(model)
    with pytest.raises(ValueError, match="save_adapters"):
        model.save_pretrained(tmp_path)
    mw.remove_adapters_(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(type(model), tmp_path).pooler.dense.weight, model.pooler.dense.weight)


def test_a_layer_put_in_by_hand_is_saved(tmp_path):
    model, batch = build("bert"), batches("bert", 1)[0]
    layer = model.encoder.layer[0].output
    layer.dense = MonarchLinear.from_linear(layer.dense, nblocks=2)
    mw.save_pretrained(model, tmp_path)
    assert torch.equal(output(load(type(model), tmp_path), batch), output(model, batch))


def test_a_config_that_models_share_describes_the_dense_one(tmp_path):
    dense = build("bert")
    model = type(dense)(dense.config).eval()
    mw.convert_(model, mw.MonarchConfig(2))
    model.save_pretrained(tmp_path / "converted")
    dense.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    assert load(type(dense), tmp_path / "dense")
    # The model's modules still look into one config.
    assert model.config is model.encoder.layer[0].attention.self.config
    assert model.config is not dense.config


def test_a_misspelled_option_is_refused():
    with pytest.raises(TypeError, match="nblock"):
        mw.MilkweedConfig(nblock=4)
    with pytest.raises(ValueError, match="nblocks=0"):
        mw.MilkweedConfig(nblocks=0)


def test_a_model_of_milkweed_around_one_of_transformers_is_saved_as_its_own(tmp_path):
    model = mw.models.Gpt2(50, 50, length=16, d_model=32, depth=1, linear={"name": "monarch", "nblocks": 2}).eval()
    tokens = torch.randint(0, 50, (2, 9))
    for name in ("made", "converted"):
        mw.save_pretrained(model, tmp_path / name)
        assert torch.equal(mw.load_pretrained(tmp_path / name)(tokens), model(tokens))
        mw.densify_(model)
        mw.convert_(model, mw.MonarchConfig(2))
