"""Models as ONNX files: values against float64, names, sizes, and what happens when something is wrong."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import milkweed as mw
from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.onnx import checking, writing

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES = TEXT | {"intermediate_size": 64, "max_position_embeddings": 40}


def run(file, **inputs):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, arrays), strict=True))


def close(found, expected, tolerance=1e-5):
    expected = expected.detach().double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def wide(model):
    return copy.deepcopy(model).double().eval()


def text_batch(batch, length):
    generator = torch.Generator().manual_seed(batch + length)
    ids = torch.randint(5, 50, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZES)).eval()
    mw.convert_(model, mw.MonarchConfig(4))
    return model


@pytest.fixture(scope="module")
def exported(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    mw.save_pretrained(bert, folder / "model")
    return mw.convert.export_onnx(folder / "model", folder / "model" / "onnx" / "model.onnx")


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 7), (4, 40)])
def test_a_converted_encoder_takes_any_batch_and_length(bert, exported, batch, length):
    (file,) = exported.files
    given = text_batch(batch, length) | {"token_type_ids": torch.arange(batch * length).view(batch, length) % 2}
    found, expected = run(file.path, **given), wide(bert)(**given)
    valid = given["attention_mask"].bool()
    close(found["last_hidden_state"][valid.numpy()], expected.last_hidden_state[valid])
    close(found["pooler_output"], expected.pooler_output)


def test_what_is_said_of_a_file(bert, exported):
    (file,) = exported.files
    assert list(file.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert file.inputs["input_ids"] == ("batch_size", "sequence_length")
    assert file.outputs["last_hidden_state"] == ("batch_size", "sequence_length", 32)
    assert file.limits == {"sequence_length": 40}
    assert file.bytes == file.path.stat().st_size
    assert file.difference < 1e-5
    assert file.int8_cosine is None
    assert "up to 40" in repr(exported)
    assert "opset 20" in repr(exported)
    assert [path.name for path in file.path.parent.iterdir()] == ["model.onnx"]
    assert str(file.path.parents[3]).encode() not in file.path.read_bytes()
    assert bert.config._attn_implementation == "sdpa"


def test_weights_of_a_monarch_layer_are_stored_as_they_are_used(bert, exported):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported.files[0].path).graph
    weights = {each.name for each in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and set(node.input) & weights]
    assert len(products) >= 12  # two for each of six layers
    moved = [node for node in graph.node if node.op_type in {"Transpose", "Reshape"} and node.input[0] in weights]
    assert moved == []


FAMILIES = {
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
        ),
        "logits",
    ),
    "mistral": (
        lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=4, bos_token_id=1, eos_token_id=2)
        ),
        "logits",
    ),
    "distilbert": (
        lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
        ),
        "last_hidden_state",
    ),
}


@pytest.mark.sampled
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_text(family, tmp_path):
    build, output = FAMILIES[family]
    model = build().eval()
    mw.convert_(model, mw.MonarchConfig(2))
    (file,) = mw.convert.export_onnx(model, tmp_path / "model.onnx").files
    given = text_batch(2, 9)
    expected = wide(model)(**given)
    assert list(file.inputs) == ["input_ids", "attention_mask"]
    valid = given["attention_mask"].bool()
    close(run(file.path, **given)[output][valid.numpy()], expected[output][valid])


def test_images(tmp_path):
    sizes = {"image_size": 16, "patch_size": 8} | {key: SIZES[key] for key in SIZES if "vocab" not in key}
    del sizes["max_position_embeddings"]
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).eval()
    mw.convert_(model, mw.MonarchConfig(2))
    (file,) = mw.convert.export_onnx(model, tmp_path / "vit.onnx").files
    assert file.inputs == {"pixel_values": ("batch_size", 3, 16, 16)}
    images = torch.randn(3, 3, 16, 16)
    close(run(file.path, pixel_values=images)["logits"], wide(model)(images.double()).logits)


def test_an_encoder_decoder_becomes_two_files(tmp_path):
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    mw.convert_(model, mw.MonarchConfig(2))
    encoder, decoder = mw.convert.export_onnx(model, tmp_path / "model.onnx").files
    assert [file.path.name for file in (encoder, decoder)] == ["encoder_model.onnx", "decoder_model.onnx"]
    given, target = text_batch(2, 9), torch.randint(50, (2, 4))
    hidden = run(encoder.path, **given)["last_hidden_state"]
    logits = run(
        decoder.path, input_ids=target, encoder_hidden_states=hidden, encoder_attention_mask=given["attention_mask"]
    )["logits"]
    close(logits, wide(model)(**given, decoder_input_ids=target).logits)


def test_a_model_of_milkweed_reads_lengths(tmp_path):
    model = mw.models.SequenceModel(2, 3, d_model=8, depth=1, layer={"name": "s4d", "d_state": 8}).eval()
    (file,) = mw.convert.export_onnx(model, tmp_path / "model.onnx").files
    assert file.inputs == {"inputs": ("batch_size", "sequence_length", 2), "lengths": ("batch_size",)}
    x, lengths = torch.randn(3, 21, 2), torch.tensor([21, 1, 8])
    close(run(file.path, inputs=x, lengths=lengths)["outputs"], wide(model)(x.double(), lengths), 1e-4)


def test_steps_give_what_the_whole_sequence_gives(tmp_path):
    layer = mw.nn.S4D(4, d_state=8).eval()
    (file,) = mw.convert.export_onnx(layer.stepper(), tmp_path / "step.onnx").files
    names = [name for name in file.inputs if name != "u"]
    u = torch.randn(2, 12, 4)
    state = {
        name: np.zeros([2 if size == "batch_size" else size for size in file.inputs[name]], np.float32)
        for name in names
    }
    steps = []
    for t in range(12):
        found = run(file.path, u=u[:, t], **state)
        steps.append(found["y"])
        state = {name: found[f"next_{name}"] for name in names}
    close(np.stack(steps, 1), wide(layer)(u.double()), 1e-4)


def test_a_fixed_length_and_a_module_of_ones_own(tmp_path):
    gpt2 = mw.models.Gpt2(20, 20, length=16, d_model=8, depth=1, heads=1).eval()
    (file,) = mw.convert.export_onnx(gpt2, tmp_path / "gpt2.onnx", length=6).files
    assert file.inputs == {"inputs": ("batch_size", 6)}
    tokens = torch.randint(20, (5, 6))
    close(run(file.path, inputs=tokens)["outputs"], wide(gpt2)(tokens))
    own = nn.Sequential(mw.nn.MonarchLinear(12, 8, 2), nn.ReLU()).eval()
    (file,) = mw.convert.export_onnx(own, tmp_path / "own.onnx", inputs={"input": torch.randn(2, 12)}).files
    x = torch.randn(7, 12)
    close(run(file.path, input=x)["output"], wide(own)(x.double()))
    with pytest.raises(FolderError, match="neither a model of milkweed nor one of transformers; give inputs="):
        mw.convert.export_onnx(own, tmp_path / "other.onnx")


def test_eight_bits_and_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    own, inputs = nn.Sequential(mw.nn.MonarchLinear(256, 256, 4)).eval(), {"input": torch.randn(2, 256)}
    (file,) = mw.convert.export_onnx(own, tmp_path / "small.onnx", inputs=inputs, int8=True).files
    monkeypatch.setattr(writing, "LARGEST_SINGLE_FILE", 1000)
    (full,) = mw.convert.export_onnx(own, tmp_path / "full.onnx", inputs=inputs).files
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "full.onnx", "full.onnx_data"}
    assert (tmp_path / "full.onnx").stat().st_size < 10_000 < full.bytes
    assert file.bytes < 0.35 * full.bytes
    assert file.int8_cosine > 0.99
    x = torch.randn(7, 256)
    close(run(full.path, input=x)["output"], wide(own)(x.double()))
    close(run(file.path, input=x)["output"], wide(own)(x.double()), 0.05)


def test_what_differs_is_not_written_and_what_was_there_stays(tmp_path, monkeypatch):
    own, inputs = nn.Sequential(nn.Linear(8, 8)), {"input": torch.randn(2, 8)}
    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(FolderError, match=r"exists; choose another name, or replace it with overwrite=True"):
        mw.convert.export_onnx(own, tmp_path / "model.onnx", inputs=inputs)
    monkeypatch.setattr(checking, "TOLERANCE", -1.0)
    with pytest.raises(FolderError, match="gives other numbers in ONNX Runtime than in torch: they differ by"):
        mw.convert.export_onnx(own, tmp_path / "model.onnx", inputs=inputs, overwrite=True)
    with pytest.raises(FolderError, match="gives other numbers"):
        mw.convert.export_onnx(own, tmp_path / "new" / "deep" / "model.onnx", inputs=inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "old"


def test_files_beside_the_model_are_not_lost(tmp_path, monkeypatch):
    own, inputs = nn.Sequential(nn.Linear(64, 64)), {"input": torch.randn(2, 64)}

    def export(**options):
        return mw.convert.export_onnx(own, tmp_path / "model.onnx", inputs=inputs, **options)

    (tmp_path / "model.onnx_data").write_text("precious")
    with pytest.raises(FolderError, match=r"model\.onnx_data' exists; choose another name"):
        export()
    assert (tmp_path / "model.onnx_data").read_text() == "precious"
    (tmp_path / "model.onnx_data").unlink()
    (tmp_path / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderError, match="exists; choose another name"):
        export()
    (tmp_path / "model.onnx").unlink()
    # An error while files take their places: whatever was there is there again.
    for name in ("model.onnx", "model.onnx_data"):
        (tmp_path / name).write_text(f"old {name}")
    monkeypatch.setattr(writing, "LARGEST_SINGLE_FILE", 0)
    rename = type(tmp_path).rename

    def fails(self, target):
        if self.name == "model.onnx" and target.parent == tmp_path and "former" not in self.parts:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(type(tmp_path), "rename", fails)
        with pytest.raises(FolderError, match=r"model\.onnx' cannot be written: No space left"):
            export(overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.onnx": "old model.onnx",
        "model.onnx_data": "old model.onnx_data",
    }
    (file,) = export(overwrite=True).files
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx_data"}
    close(run(file.path, **inputs)["output"], wide(own)(inputs["input"].double()))
    # One that needs no weights beside it leaves none of the old model's.
    monkeypatch.undo()
    export(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_that_gives_nan_is_refused(tmp_path):
    own = nn.Linear(8, 8)
    own.weight.data[3, 3] = torch.nan
    with pytest.raises(FolderError, match="has NaN in torch already"):
        mw.convert.export_onnx(own, tmp_path / "model.onnx", inputs={"input": torch.randn(2, 8)})
    assert list(tmp_path.iterdir()) == []


def test_a_wide_model_in_memory_is_exported_in_float32(bert, tmp_path):
    (file,) = mw.convert.export_onnx(copy.deepcopy(bert).double(), tmp_path / "model.onnx").files
    given = text_batch(1, 6) | {"token_type_ids": torch.zeros(1, 6, dtype=torch.long)}
    close(run(file.path, **given)["last_hidden_state"], wide(bert)(**given).last_hidden_state)


def test_an_operation_without_a_counterpart_is_named(tmp_path):
    class Solve(nn.Module):
        def forward(self, x):
            return torch.linalg.solve_triangular(x @ x.mT + 9 * torch.eye(4), x, upper=False)

    with pytest.raises(FolderError, match=r"Solve cannot be exported: ONNX has nothing for the operation aten::"):
        mw.convert.export_onnx(Solve(), tmp_path / "solve.onnx", inputs={"x": torch.randn(2, 4, 4)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "file", "options", "message"),
    [
        ("missing", "a.onnx", {}, "missing is not a folder here|missing does not exist"),
        (".", "a.onnx", {}, "holds neither model.safetensors of milkweed nor config.json of transformers"),
        (".", "a.pb", {}, r"file='a.pb' must end in .onnx, as in 'a.onnx'"),
        (".", "", {}, r"file='\.' names no file; expected one that ends in .onnx"),
        (".", "a" * 300 + ".onnx", {}, "cannot be written: File name too long"),
        (".", "a.onnx", {"opset": 11}, "opset=11 is not supported; expected 18 to 23"),
        (".", "a.onnx", {"length": 0}, "length must be at least 1; got 0"),
        (".", "a.onnx", {"inputs": {"x": torch.ones(2)}}, "inputs are for a module in memory"),
    ],
)
def test_what_cannot_be_used_is_refused(model, file, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        mw.convert.export_onnx(model, file, **options)
    assert list(tmp_path.iterdir()) == []
