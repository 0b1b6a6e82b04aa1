"""Sentence encoders as one ONNX graph, pooling included."""

import json

import numpy as np
import pytest
import torch

import milkweed as mw
from milkweed.convert.hub.conversion_progress import FolderError

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

WORDS = ["red", "green", "blue", "cat", "dog", "runs", "sleeps", "the", "a", "house"]
TEXTS = ["the cat sleeps", "a dog", "the red house", "green"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A sentence encoder that sentence-transformers saved, and one that was converted from it."""
    from sentence_transformers.sentence_transformer import modules

    home = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"vocab_size": 15, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=40))
    bert.save_pretrained(home / "bert")
    (home / "bert" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizerFast(str(home / "bert" / "vocab.txt")).save_pretrained(home / "bert")
    stages = [modules.Pooling(32, "mean"), modules.Dense(32, 12), modules.Normalize()]
    encoder = sentence_transformers.SentenceTransformer(
        modules=[modules.Transformer(str(home / "bert")), *stages], device="cpu"
    )
    encoder.save_pretrained(str(home / "dense"))
    mw.convert_folder(home / "dense", home / "converted", mw.MonarchConfig(4))
    return home


def embedded(file, folder):
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["sentence_embedding"], dict(tokens))[0]


def test_the_graph_gives_what_sentence_transformers_gives(folders, tmp_path):
    from sentence_transformers.backend.utils import backend_should_export

    file = folders / "dense" / "onnx" / "model.onnx"
    done = mw.convert.export_onnx(folders / "dense", file)
    assert list(done.files[0].outputs) == ["last_hidden_state", "sentence_embedding"]
    assert done.files[0].outputs["sentence_embedding"] == ("batch_size", 12)
    assert done.beside == ()
    encoder = sentence_transformers.SentenceTransformer(str(folders / "dense"), device="cpu")
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(embedded(file, folders / "dense"), expected, atol=1e-5)
    # Where sentence-transformers looks for it.
    export, options = backend_should_export(folders / "dense", True, {}, "model.onnx", "*.onnx", "ONNX")
    assert not export
    assert options == {"subfolder": "onnx", "file_name": "model.onnx"}


def test_a_converted_one_with_its_tokenizer_in_a_new_folder(folders, tmp_path):
    done = mw.convert.export_onnx(folders / "converted", tmp_path / "new" / "model.onnx", int8=True)
    assert {"tokenizer.json", "config.json", "modules.json"} <= set(done.beside)
    (file,) = done.files
    model = mw.load_pretrained(folders / "converted").double()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")(TEXTS, padding=True, return_tensors="pt")
    encoder = sentence_transformers.SentenceTransformer(str(folders / "dense"), device="cpu")
    with torch.no_grad():
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        expected = torch.nn.functional.normalize(torch.tanh(encoder[2].double().linear(mean)), dim=-1).numpy()
    found = embedded(file.path, tmp_path / "new")
    assert file.difference < 1e-5
    assert ((found * expected).sum(-1) > 0.99).all()


def test_a_module_without_a_folder_is_not_looked_for_on_the_hub(folders, tmp_path, monkeypatch):
    import shutil

    from milkweed.convert.hub.conversion_progress import Progress
    from milkweed.convert.onnx.loading import load

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asks the hub"))
    monkeypatch.setattr("huggingface_hub.file_download.get_session", lambda: pytest.fail("asks the hub"), raising=False)
    place = shutil.copytree(folders / "dense", tmp_path / "copy")
    listed = json.loads((place / "modules.json").read_text())
    for each in listed[1:]:
        if each["type"].endswith("Normalize"):
            shutil.rmtree(place / each["path"], ignore_errors=True)
    assert [type(stage).__name__ for stage in load(place, Progress()).stages] == ["Pooling", "Dense", "Normalize"]
    shutil.rmtree(place / listed[1]["path"])
    with pytest.raises(FolderError, match=r"lists 1_Pooling, a Pooling, which is not there"):
        load(place, Progress())


def test_modules_that_do_more_than_compute_are_refused(folders, tmp_path):
    place = tmp_path / "strange"
    place.mkdir()
    listed = json.loads((folders / "dense" / "modules.json").read_text())
    for kind in ("evil.module.Pooling2", "os.system"):
        (place / "modules.json").write_text(json.dumps([listed[0], listed[1] | {"type": kind}]))
        with pytest.raises(FolderError, match=r"lists \w+, which cannot be exported; expected a Transformer and"):
            mw.convert.export_onnx(place, tmp_path / "model.onnx")
    (place / "modules.json").write_text(json.dumps([listed[0], listed[1] | {"path": "../dense/1_Pooling"}]))
    with pytest.raises(ValueError, match="leaves that folder"):
        mw.convert.export_onnx(place, tmp_path / "model.onnx")
