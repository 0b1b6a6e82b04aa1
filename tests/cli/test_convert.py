import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import milkweed as mw
from milkweed.cli import main

transformers = pytest.importorskip("transformers")

WORDS = ["red", "green", "blue", "cat", "dog", "runs", "sleeps", "the", "a", "house", "on", "in", "tree", "##s"]
SIZES = {"vocab_size": 5 + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(path):
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    transformers.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bert = transformers.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=40)
    gpt2 = transformers.GPT2Config(
        vocab_size=SIZES["vocab_size"], n_embd=32, n_layer=2, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=2
    )
    for name, model in (("bert", transformers.BertModel(bert)), ("gpt2", transformers.GPT2LMHeadModel(gpt2))):
        model.save_pretrained(folder / name)
        save_tokenizer(folder / name)
    return folder


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    pick = torch.randint(len(WORDS) - 1, (200, 9)).tolist()
    (tmp_path / "text.txt").write_text("\n".join(" ".join(WORDS[i] for i in row) for row in pick) + "\n\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(arguments, capsys):
    assert main(["convert", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def convert(*arguments):
    assert main(["convert", *arguments]) == 0


def test_a_converted_encoder_loads_back_and_has_its_report(folder, capsys):
    convert("bert", "--calibrate", "text.txt", "--nblocks", "3", "--out", "new/out")
    shown = capsys.readouterr().out
    assert "encoder.layer.0-1.attention.self.query" in shown
    assert "12 of 13 linear layers converted" in shown
    assert "it is a head" in shown
    assert "load_pretrained('new/out')" in shown
    out = folder / "new" / "out"
    assert {path.name for path in out.parent.iterdir()} == {"out"}
    loaded = mw.load_pretrained(out)
    assert isinstance(loaded.encoder.layer[0].output.dense, mw.nn.MonarchLinear)
    tokens = transformers.AutoTokenizer.from_pretrained(out)(["the cat sleeps"], return_tensors="pt")
    assert loaded(**tokens)[0].isfinite().all()
    report = json.loads((out / "conversion.json").read_text())
    assert report["parameters_after"] == sum(p.numel() for p in loaded.parameters())
    assert all(line["output_error"] < 1 for line in report["layers"] if line["layer"])
    timing = report["timing"]
    assert timing["inputs"] == [8, 40]
    assert timing["device"] == "cpu"
    assert timing["speedup"] == pytest.approx(timing["seconds_before"] / timing["seconds_after"])
    assert f"({timing['speedup']:.2f}×)" in shown
    assert shown.index("cosine of text vectors") < shown.index("speed") < shown.index("encoder.layer.0-1")


def test_the_model_is_the_one_that_python_makes(folder):
    convert("bert", "--nblocks", "2", "--out", "out")
    model = transformers.BertModel.from_pretrained("bert", dtype=torch.float32).eval()
    mw.convert_(model, mw.MonarchConfig(2))
    loaded = mw.load_pretrained("out")
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens)[0], model(tokens)[0], atol=1e-5, rtol=1e-5)


def test_the_page_needs_nothing_else_and_escapes_names(folder):
    (folder / "bert").rename(folder / "<b>&$x$")
    convert(str(folder / "<b>&$x$"), "--nblocks", "2", "--out", "out")
    page = (folder / "out" / "conversion.html").read_text()
    assert "<title>&lt;b&gt;&amp;$x$, converted by milkweed</title>" in page
    assert "<b>&" not in page
    assert not re.search(r"""(src|href)=|url\(|@import""", page)
    assert "inputs 8 × 40" in page
    assert '<meta name="viewport" content="width=device-width' in page
    assert page.index("speed") < page.index("encoder.layer.0")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_distillation_brings_the_outputs_nearer(folder, model, capsys):
    common = [model, "--calibrate", "text.txt", "--nblocks", "4", "--rank", "1", "--batch-size", "8"]
    common += ["--held-out", "0"]
    convert(*common, "--out", "plain")
    convert(*common, "--distill", "4", "--out", "distilled")
    printed = " ".join(capsys.readouterr().out.split())
    assert "distilled in 100 steps" in printed
    losses = json.loads((folder / "distilled" / "conversion.json").read_text())["distillation_losses"]
    assert len(losses) == 100
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert "Distillation" in (folder / "distilled" / "conversion.html").read_text()
    dense = transformers.AutoModel.from_pretrained(folder / model).eval()
    inputs = torch.arange(5, 5 + 12).view(2, 6)
    errors = []
    for out in ("plain", "distilled"):
        found = mw.load_pretrained(folder / out)
        with torch.no_grad():
            hidden = found.base_model(inputs)[0]
            errors.append(float((hidden - dense(inputs)[0]).norm()))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("more", [["--sequential"], ["--parameters", "0.5"], ["--parameters", "0.6", "--sequential"]])
def test_decoders_are_calibrated_without_a_padding_token(folder, more, capsys):
    file = folder / "gpt2" / "tokenizer_config.json"
    values = json.loads(file.read_text()) | {"pad_token": None}
    file.write_text(json.dumps(values))
    convert("gpt2", "--calibrate", "text.txt", *more, "--out", "out")
    capsys.readouterr()
    loaded = mw.load_pretrained("out")
    assert type(loaded).__name__ == "GPT2LMHeadModel"
    lines = json.loads((folder / "out" / "conversion.json").read_text())["layers"]
    before, after = (sum(line[f"parameters_{when}"] for line in lines[:-1]) for when in ("before", "after"))
    if "--parameters" in more:
        assert after <= float(more[1]) * before


@pytest.mark.parametrize(
    ("options", "structure"),
    [
        (["--structure", "low_rank", "--rank", "4"], "LowRankLinear"),
        (["--structure", "block_diagonal"], "BlockDiagonalLinear"),
        (["--structure", "pixelfly", "--rank", "2"], "PixelflyLinear"),
        (["--rank", "1", "--refine", "2", "--calibrate", "text.txt", "--dtype", "bfloat16"], "MonarchLinear"),
    ],
)
def test_structures(folder, options, structure):
    convert("bert", *options, "--layers", "re:.*intermediate.dense", "--keep", "re:.*1.*", "--out", "out")
    loaded = mw.load_pretrained("out")
    layers = [layer.intermediate.dense for layer in loaded.encoder.layer]
    assert [type(layer).__name__ for layer in layers] == [structure, "Linear"]
    assert layers[0].bias.dtype == (torch.bfloat16 if "bfloat16" in options else torch.float32)


def test_a_plan_writes_nothing_and_can_list_every_layer(folder, capsys):
    before = content(folder)
    convert("bert", "--plan", "--all")
    shown = capsys.readouterr().out
    assert "encoder.layer.1.attention.self.query" in shown
    assert "Without --calibrate" in shown
    assert content(folder) == before


def test_side_files_are_copied_as_data(folder, capsys):
    source = folder / "bert"
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "../gpt2"}]))
    for name in ("1_Pooling/config.json", "2_Other/config.json"):
        (source / name).parent.mkdir()
        (source / name).write_text("{}")
    for name in ("code.py", "pytorch_model.bin", ".hidden.json", "LICENSE", "README.md"):
        (source / name).write_text("x")
    convert("bert", "--out", "out")
    found = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()}
    assert {"vocab.txt", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"} <= found
    assert "LICENSE" in found
    assert not found & {"2_Other/config.json", "code.py", "pytorch_model.bin", ".hidden.json"}
    # The dense model's card does not describe this one.
    assert "converted by milkweed" in (folder / "out" / "README.md").read_text()


def test_overwriting_replaces_only_what_the_command_wrote(folder, capsys):
    arguments = ["bert", "--out", "out"]
    convert(*arguments)
    (folder / "out" / "stale").write_text("")
    assert "is not empty; choose a new folder, or replace it with --overwrite" in refused(arguments, capsys)
    convert(*arguments, "--overwrite")
    assert not (folder / "out" / "stale").exists()
    assert "holds no conversion.json" in refused(["bert", "--out", "gpt2", "--overwrite"], capsys)
    assert sorted(path.name for path in folder.iterdir()) == ["bert", "gpt2", "out", "text.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bert"], "say where to write the converted model with --out DIR"),
        (["no/such/bert", "--out", "x"], "no/such/bert does not exist; expected a folder, or a name on the hub"),
        (["text.txt", "--out", "x"], "text.txt is a file; expected the folder"),
        (["empty", "--out", "x"], "empty holds no config.json"),
        (["pickled", "--out", "x"], "only as pickles (pytorch_model.bin), which can run code"),
        (["cut", "--out", "x"], "is corrupt or truncated"),
        (["strange", "--out", "x"], "code that comes with a model is not run"),
        (["other", "--out", "x"], "names the architecture 'NoSuchModel', which is not a model of transformers"),
        (["bert", "--out", "bert/converted"], "overlaps with the model that is read"),
        (["bert", "--out", "text.txt"], "is a file; choose a new folder"),
        (["bert", "--out", "text.txt/x"], "cannot be written"),
        (["bert", "--out", "."], "cannot be put in place as a whole"),
        (["bert", "--out", "x", "--calibrate", "no.txt"], "--calibrate no.txt does not exist"),
        (["bert", "--out", "x", "--calibrate", "blank.txt"], "--calibrate blank.txt is empty"),
        (["bert", "--out", "x", "--calibrate", "binary.txt"], "is no UTF-8 text"),
        (["bert", "--out", "x", "--calibrate", "zeros.txt"], "holds binary data"),
        (["untold", "--out", "x", "--calibrate", "text.txt"], "untold has no tokenizer that transformers can read"),
        (["bert", "--out", "x", "--layers", "re:.*dens"], "--layers: rule 're:.*dens' matches none of the 13"),
        (["bert", "--out", "x", "--keep", "query"], "--keep: rule 'query' matches none of the 13 linear layers"),
        (["bert", "--out", "x", "--layers", "re:("], "is malformed"),
        (["bert", "--out", "x", "--nblocks", "64"], "encoder.layer.0.attention.self.query' cannot become monarch"),
        (["bert", "--out", "x", "--nblocks", "0"], "'0' is no whole number from 1 on"),
        (["bert", "--out", "x", "--sequential"], "--sequential needs --calibrate FILE.txt"),
        (["bert", "--out", "x", "--parameters", "0.5"], "--parameters needs --calibrate FILE.txt"),
        (["bert", "--out", "x", "--distill", "1"], "--distill needs --calibrate FILE.txt"),
        (["bert", "--out", "x", "--distill-lr", "0.1"], "--distill-lr needs --distill EPOCHS"),
        (["bert", "--out", "x", "--distill-lr", "0"], "'0' is no learning rate such as 0.001"),
        (["bert", "--plan", "--distill", "1", "--calibrate", "text.txt"], "exclude each other"),
        (
            ["bert", "--out", "x", "--distill", "1", "--calibrate", "text.txt", "--dtype", "bfloat16"],
            "add --dtype float32",
        ),
        (["bert", "--out", "x", "--refine", "1"], "--refine needs --calibrate FILE.txt"),
        (["bert", "--out", "x", "--parameters", "-1"], "'-1' is neither a share"),
        (["bert", "--plan", "--parameters", "1", "--nblocks", "2", "--calibrate", "text.txt"], "exclude each other"),
        (["bert", "--plan", "--parameters", "9", "--calibrate", "text.txt"], "raise it to"),
        (["bert", "--out", "x", "--structure", "low_rank"], "--structure low_rank needs --rank"),
        (["bert", "--out", "x", "--structure", "block_diagonal", "--rank", "2"], "--rank does not belong to"),
        (["bert", "--out", "x", "--device", "gpu0"], "--device gpu0 cannot be used"),
        (["bert", "--out", "x", "--nblock", "2"], "did you mean --nblocks?"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, message, folder, capsys):
    for name in ("pickled", "cut", "strange", "other", "untold"):
        shutil.copytree("bert", name)
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (folder / "empty").mkdir()
    config = json.loads((folder / "bert" / "config.json").read_text())
    for name, change in (("strange", {"model_type": "mine"}), ("other", {"architectures": ["NoSuchModel"]})):
        (folder / name / "config.json").write_text(json.dumps(config | change))
    for file in (folder / "untold").glob("*tok*"):
        file.unlink()
    (folder / "untold" / "vocab.txt").unlink()
    (folder / "blank.txt").write_text("\n \n")
    (folder / "binary.txt").write_bytes(b"\x80\xff" * 100)
    (folder / "zeros.txt").write_bytes(b"a\0b\n")
    before = content(folder)
    assert message in refused(arguments, capsys)
    assert content(folder).keys() == before.keys()


def test_a_converted_model_can_be_converted_further(folder, capsys):
    convert("bert", "--out", "out", "--layers", r"re:.*intermediate.*")
    convert("out", "--out", "again")
    model = mw.load_pretrained("again")
    assert isinstance(model.encoder.layer[0].intermediate.dense, mw.nn.MonarchLinear)
    assert isinstance(model.encoder.layer[0].output.dense, mw.nn.MonarchLinear)
    assert "nothing to convert" in refused(["again", "--out", "third"], capsys)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_it_leaves_nothing(folder, capsys, monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr("milkweed.plots.conversion_page.write_page", stop)
    before = content(folder)
    assert main(["convert", "bert", "--out", "new/out"]) == (2 if isinstance(error, OSError) else 130)
    assert ("No space left on device" in capsys.readouterr().err) is isinstance(error, OSError)
    assert content(folder).keys() == before.keys()


def test_a_disk_that_is_too_small_is_found_first(folder, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    assert "0.0 GB are free on its disk" in refused(["bert", "--out", "x"], capsys)


def test_names_on_the_hub_are_downloaded(folder, capsys, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns):
        asked.append(name)
        if name == "someone/nothing":
            raise OSError("no such model\nand much more")
        return str(folder / "bert")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    convert("someone/bert", "--out", "out")
    assert "the hub did not provide it (no such model)" in refused(["someone/nothing", "--out", "x"], capsys)
    assert asked == ["someone/bert", "someone/nothing"]


def test_missing_packages_are_named_with_their_extra(folder, capsys, monkeypatch):
    real = importlib.util.find_spec
    more = ["--calibrate", "text.txt", "--distill", "1"]
    for package, extra in (("transformers", "hf"), ("lightning", "train")):
        monkeypatch.setattr("importlib.util.find_spec", lambda n, p=package: None if n == p else real(n))
        assert f'pip install "milkweed[{extra}]"' in refused(["bert", "--out", "x", *more], capsys)


def test_weights_that_do_not_belong_to_the_config(folder, capsys):
    file = folder / "bert" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "bert lacks encoder.layer.2" in refused(["bert", "--out", "x"], capsys)
    file.write_text(json.dumps(config | {"intermediate_size": 48}))
    assert "the weights of bert cannot be read" in refused(["bert", "--out", "x"], capsys)


def test_the_options_of_every_structure_are_there_without_importing_them():
    import dataclasses
    import inspect

    from milkweed._registry import registered
    from milkweed.cli.convert import convert as command
    from milkweed.cli.convert import further_options
    from milkweed.nn.structured_linear.config import is_whole

    own = {name: kind for name, kind in registered("config").items() if kind.__module__.startswith("milkweed.")}
    fields = {field.name for kind in own.values() for field in dataclasses.fields(kind) if is_whole(field)}
    assert fields <= inspect.signature(command).parameters.keys()
    assert not fields & further_options().keys()
    assert all(name in inspect.getdoc(command) for name in own)


def save_other(folder, name):
    """Tiny models of further families, whose inputs are not what BERT's are."""
    common = {"vocab_size": SIZES["vocab_size"], "max_position_embeddings": 40}
    t5 = {"vocab_size": SIZES["vocab_size"], "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    bart = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in BART_SIDE.items()}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = {
        "roberta": lambda: transformers.RobertaModel(
            transformers.RobertaConfig(**SIZES, intermediate_size=64, max_position_embeddings=40, pad_token_id=1)
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**t5, decoder_start_token_id=0)),
        "t5-encoder": lambda: transformers.T5EncoderModel(transformers.T5Config(**t5)),
        "bart": lambda: transformers.BartForConditionalGeneration(
            transformers.BartConfig(**common, d_model=32, **bart)
        ),
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=common | tower | {"eos_token_id": 2},
                vision_config=tower | {"image_size": 16, "patch_size": 8},
                projection_dim=32,
            )
        ),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**tower, image_size=16, patch_size=8)),
        "wav2vec2": lambda: transformers.Wav2Vec2Model(
            transformers.Wav2Vec2Config(
                **tower,
                conv_dim=(8, 8),
                conv_stride=(5, 2),
                conv_kernel=(10, 3),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            )
        ),
    }[name]()
    model.save_pretrained(folder / name)
    save_tokenizer(folder / name)
    return model


BART_SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}


@pytest.mark.parametrize("family", ["roberta", "t5", "t5-encoder", "bart"])
def test_families_that_are_called_in_other_ways(folder, family, capsys):
    save_other(folder, family)
    (folder / "long.txt").write_text("\n".join(" ".join(WORDS[:13] * n) for n in range(1, 9)))
    convert(family, "--calibrate", "long.txt", "--distill", "1", "--nblocks", "2", "--out", "out")
    shown = capsys.readouterr().out
    assert re.search(r"inputs 8 × \d+ on cpu", shown)
    loaded = mw.load_pretrained("out")
    inputs = {"input_ids": torch.arange(6).view(1, 6)}
    if family in {"t5", "bart"}:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    assert loaded(**inputs)[0].isfinite().all()


def test_the_decoder_reads_the_texts_one_token_later(folder):
    from milkweed.convert.hub.inputs import with_decoder

    model = save_other(folder, "bart")
    tokens, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = with_decoder(model, {"input_ids": tokens, "attention_mask": mask})
    start = model.config.decoder_start_token_id
    assert found["decoder_input_ids"].tolist() == [[start, 5, 6], [start, 8, 9]]
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert found["input_ids"] is tokens


@pytest.mark.parametrize("family", ["clip", "vit", "wav2vec2"])
def test_models_that_read_more_than_texts(folder, family, capsys):
    save_other(folder, family)
    message = refused([family, "--calibrate", "text.txt", "--nblocks", "2", "--out", "x"], capsys)
    assert "does not run on texts alone" in message
    assert "convert it without --calibrate" in message
    convert(family, "--nblocks", "2", "--out", "out")
    assert ("median of" in capsys.readouterr().out) is (family != "clip")


def test_a_model_that_would_not_run_is_not_written(folder, capsys, monkeypatch):
    # As if it were not known that T5 asks for the dtype of `wo.weight`.
    monkeypatch.setattr("milkweed.convert.sites.asks_for_dtype", lambda *_: False)
    monkeypatch.setattr("milkweed.convert.hub.attach.mark", lambda _: None)
    save_other(folder, "t5")
    message = refused(["t5", "--nblocks", "2", "--out", "out"], capsys)
    wo = "encoder.block.0.layer.1.DenseReluDense.wo"
    assert f"the converted model would not run: AttributeError in {wo}" in message
    assert f"--keep '{wo}'" in message
    assert not (folder / "out").exists()
    convert("t5", "--nblocks", "2", "--keep", "re:.*DenseReluDense.wo", "--out", "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "x"}, "bert/config.json"),
        ({"num_attention_heads": 5}, "bert/config.json"),
        ({"num_hidden_layers": 10**8}, "has 100000000 layers, but only 39 tensors are stored beside it"),
        ("[" * 100_000, "is not JSON: nested too deeply"),
        ("[]", "must hold a JSON object; got a list"),
    ],
)
def test_configs_that_make_no_model(folder, capsys, change, message):
    file = folder / "bert" / "config.json"
    text = change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change)
    file.write_text(text)
    assert message in refused(["bert", "--out", "x"], capsys)
    assert not (folder / "x").exists()


def test_weights_that_the_config_has_no_place_for(folder, capsys):
    file = folder / "bert" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    convert("bert", "--out", "out")
    warning = " ".join(capsys.readouterr().err.split())
    assert "BertModel, which config.json of bert describes, has no place for encoder.layer.1.attention" in warning
    assert "and 11 more: stored, but not in the converted model" in warning


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_appears_in_its_place_meanwhile_is_not_replaced(folder, capsys, monkeypatch, kind):
    def appear(*_):
        if kind == "file":
            (folder / "out").write_text("precious")
        else:
            (folder / "out").mkdir()
            (folder / "out" / "thesis.txt").write_text("precious")

    monkeypatch.setattr("milkweed.plots.conversion_page.write_page", appear)
    assert "choose a new folder" in refused(["bert", "--out", "out"], capsys)
    path = folder / "out" if kind == "file" else folder / "out" / "thesis.txt"
    assert path.read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["bert", "gpt2", "out", "text.txt"]


def test_being_ended_leaves_nothing(folder, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("milkweed.plots.conversion_page.write_page", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = content(folder)
    with pytest.raises(SystemExit) as raised:
        main(["convert", "bert", "--out", "new/out"])
    assert raised.value.code == 128 + signal.SIGTERM
    assert content(folder).keys() == before.keys()
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_while_distilling(folder, monkeypatch, number, code):
    real = mw.nn.MonarchLinear.forward

    def forward(self, x):
        if self.training is False and torch.is_grad_enabled():
            os.kill(os.getpid(), number)
        return real(self, x)

    monkeypatch.setattr(mw.nn.MonarchLinear, "forward", forward)
    before = content(folder)
    arguments = ["convert", "bert", "--calibrate", "text.txt", "--distill", "9", "--out", "out"]
    if number == signal.SIGINT:
        assert main(arguments) == code
    else:
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == code
    assert content(folder).keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.csv", 'label,the text\n1,"the cat, a dog"\n2,"red\nblue"\n'),
        ("pairs.tsv", "label\tthe text\n1\tthe cat, a dog\n2\tred blue\n"),
        ("pairs.jsonl", '{"label": 1, "the text": "the cat, a dog"}\n{"label": 2, "the text": "red\\nblue"}\n'),
        ("it's.txt", '{"label": 1, "the text": "the cat, a dog"}\n{"label": 2, "the text": "red blue"}\n'),
    ],
)
def test_records_are_no_texts_and_the_command_in_the_refusal_makes_some(name, content, tmp_path, monkeypatch):
    from milkweed._suggest import UsageError
    from milkweed.cli.convert.texts import read_texts

    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="one text per line") as refusal:
        read_texts(tmp_path / name, 10)
    assert "the text" in str(refusal.value)
    command = re.search(r"python -c .*", str(refusal.value))[0]
    if "csv" in command:  # the first column is proposed
        command = command.replace('"label"', '"the text"')
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert read_texts(tmp_path / "texts.txt", 10) == ["the cat, a dog", "red blue"]


def test_files_of_other_kinds_are_refused_by_name(tmp_path):
    from milkweed._suggest import UsageError
    from milkweed.cli.convert.texts import read_texts

    (tmp_path / "a.json").write_text('[\n"red",\n"blue"]\n')
    with pytest.raises(UsageError, match=r"a.json is a .json file; expected a text file with one text per line"):
        read_texts(tmp_path / "a.json", 10)
    (tmp_path / "braces.txt").write_text("{red}\n[1]\n{}\n")
    assert read_texts(tmp_path / "braces.txt", 10) == ["{red}", "[1]", "{}"]


def test_texts_are_spread_over_the_file(tmp_path):
    from milkweed.cli.convert.texts import read_texts

    (tmp_path / "many.txt").write_text("\ufeff" + "\n\n".join(map(str, range(10))))
    assert read_texts(tmp_path / "many.txt", 4) == ["0", "2", "5", "7"]
    assert len(read_texts(tmp_path / "many.txt", 10)) == 10
