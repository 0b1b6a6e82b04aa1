"""`milkweed predict` and `milkweed evaluate --rate`, for every task."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import milkweed as mw
from milkweed.cli import main

pytest.importorskip("lightning")
from milkweed.train.quiet_lightning import quietly

TEXTS = Path(__file__).parents[1] / "data" / "texts"
ONCE = ["--data.limit", "16", "--trainer.max_epochs", "1", "--model.depth", "1"]
TOKENS = [
    *("--data.tokenizer", str(TEXTS / "tokenizer"), "--data.vocabulary_size", "192", "--data.length", "16"),
    *("--data.batch_size", "4", "--model.d_model", "16", "--task.warmup_steps", "0", *ONCE),
]
TEXT = "to be, or not to be, that is the question: whether tis nobler in the mind to suffer\n"


def trained(out, recipe, *options):
    assert main(["train", recipe, "--out", str(out), *options]) == 0
    return out / recipe


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def digits(out):
    pytest.importorskip("sklearn")
    return trained(out, "digits", "--model.d_model", "8", *ONCE, "--data.batch_size", "8")


@pytest.fixture(scope="module")
def delay(out):
    sizes = ["--data.length", "40", "--data.lag", "5", "--data.train_size", "16", "--data.eval_size", "8"]
    model = ["--model.layer.d_state", "8", "--data.batch_size", "8", "--trainer.max_epochs", "1"]
    return trained(out, "delay", *sizes, *model)


@pytest.fixture(scope="module")
def language(out):
    (out / "text.txt").write_text(TEXT * 40)
    sizes = ["--model.d_model", "16", "--data.length", "16", "--model.heads", "2", "--model.mixer_options.width", "4"]
    return trained(out, "m2-gpt", "--data.file", str(out / "text.txt"), *sizes, *ONCE)


def test_classes_are_written_as_tables_and_lists(digits, tmp_path, capsys, monkeypatch):
    from sklearn.datasets import load_digits

    np.save(tmp_path / "images.npy", load_digits().images[:3])
    expected = mw.load_predictor(digits)(str(tmp_path / "images.npy"))
    for name in ("found.csv", "found.json"):
        assert main(["predict", str(digits), str(tmp_path / "images.npy"), "--out", str(tmp_path / name)]) == 0
        assert f"3 predictions written to {tmp_path / name}" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text()) == expected
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["input", "class", "probability", *(f"p.{digit}" for digit in range(10))]
    assert [row["class"] for row in rows] == [each["class"] for each in expected]
    assert float(rows[1]["p.4"]) == expected[1]["probabilities"]["4"]
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(digits), "images.npy"]) == 0
    printed = capsys.readouterr().out
    assert "images.npy[2]" in printed
    assert "probability" in printed


def test_numbers_of_every_step_have_a_row_each(delay, tmp_path):
    signals = np.random.RandomState(0).randn(2, 30).astype(np.float32)
    np.save(tmp_path / "x.npy", signals)
    assert main(["predict", str(delay), str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.csv")]) == 0
    with (tmp_path / "y.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["input", "step", "value"]
    assert [row["step"] for row in rows] == [str(step) for step in range(30)] * 2
    with torch.no_grad():
        expected = mw.load_pretrained(delay)(torch.from_numpy(signals)[..., None]).flatten()
    np.testing.assert_allclose([float(row["value"]) for row in rows], expected, atol=1e-6)


def test_texts_are_continued(language, tmp_path, capsys):
    assert main(["predict", str(language), "to be", "--steps", "11", "--temperature", "0"]) == 0
    printed = capsys.readouterr().out.removesuffix("\n")
    characters = sorted(set(TEXT))
    prompt = torch.tensor([[characters.index(each) for each in "to be"]])
    tokens = mw.models.generate(mw.load_pretrained(language), prompt, 11, temperature=0)[0]
    assert printed == "".join(characters[token] for token in tokens)
    (tmp_path / "prompt.txt").write_text("or not")
    predictor = mw.load_predictor(language)
    first, again, other = (predictor(tmp_path / "prompt.txt", steps=8, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert first["text"].startswith("or not")
    with pytest.raises(ValueError, match="the text holds 'Z', which is not among"):
        predictor("to be Z")
    with pytest.raises(ValueError, match="prompt is empty"):
        predictor("")
    with pytest.raises(TypeError, match=r"reads texts; milkweed\.models\.stream"):
        predictor.stream()


@pytest.fixture(scope="module")
def encoders(out):
    pytest.importorskip("transformers")
    source = ["--data.source", str(TEXTS / "pairs"), "--data.documents", "null", "--data.negatives", "1"]
    return {
        "glue": trained(out, "m2-bert-glue", *TOKENS, "--data.source", str(TEXTS / "stsb")),
        "mlm": trained(out, "m2-bert-mlm", *TOKENS, "--data.source", __file__),
        "retrieval": trained(out, "m2-bert-retrieval", *TOKENS, *source),
    }


def test_pairs_of_sentences_get_numbers(encoders, tmp_path):
    predictor = mw.load_predictor(encoders["glue"])
    pairs = [("a man is playing", "a man plays a guitar in the street"), ("yes", "no")]
    found = predictor(pairs)
    data_of = mw.data.tokenized.frame
    tokens, types, lengths = data_of(predictor.preprocessing.tokenizer, *map(list, zip(*pairs, strict=True)), 16)
    with torch.no_grad():
        expected = mw.load_pretrained(encoders["glue"])(tokens, lengths, types)[:, 0]
    np.testing.assert_allclose([each["value"] for each in found], expected, atol=1e-6)
    assert predictor("\t".join(pairs[0]))[0]["value"] == pytest.approx(found[0]["value"], abs=1e-6)
    row = dict(zip(("sentence1", "sentence2"), pairs[1], strict=True))
    assert predictor(row)[0]["value"] == pytest.approx(found[1]["value"], abs=1e-6)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    assert (
        main(["predict", str(encoders["glue"]), str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "y.json")]) == 0
    )
    assert len(json.loads((tmp_path / "y.json").read_text())) == 3
    with pytest.raises(ValueError, match="the model reads 2 texts, sentence1 and sentence2, and got 1"):
        predictor("one alone")
    with pytest.raises(FileNotFoundError, match=r"none\.txt is not a file"):
        predictor("none.txt")
    with pytest.raises(ValueError, match="rate=2 must be 1: texts have no sampling rate"):
        predictor("a\tb", rate=2)


def test_masks_are_filled(encoders):
    predictor = mw.load_predictor(encoders["mlm"])
    tokenizer = predictor.preprocessing.tokenizer
    (found, other) = predictor(["a [MASK] is [MASK] .", "the [MASK]"], top=3)
    assert [len(each["masks"]) for each in (found, other)] == [2, 1]
    ids = torch.tensor([tokenizer("a [MASK] is [MASK] .")["input_ids"]])
    with torch.no_grad():
        logits = mw.load_pretrained(encoders["mlm"])(ids)[0][ids[0] == tokenizer.mask_token_id][:, : len(tokenizer)]
    expected = logits.softmax(-1).topk(3)
    for each, values, places in zip(found["masks"], *expected, strict=True):
        assert list(each) == tokenizer.convert_ids_to_tokens(places.tolist())
        np.testing.assert_allclose(list(each.values()), values, atol=1e-6)
    with pytest.raises(ValueError, match=r"no \[MASK\] to fill"):
        predictor("a man")


def test_the_nearest_documents_are_found(encoders, tmp_path):
    predictor = mw.load_predictor(encoders["retrieval"])
    documents = ["a man plays", "the cat sleeps on the mat", "rain", "a woman sings a song in the rain"]
    found = predictor(["rain", "a cat"], documents=documents, top=3, batch_size=2)
    model, tokenizer = mw.load_pretrained(encoders["retrieval"]), predictor.preprocessing.tokenizer

    def vector(text):
        tokens = torch.full((1, 16), tokenizer.pad_token_id)
        ids = tokenizer(text, truncation=True, max_length=16)["input_ids"]
        tokens[0, : len(ids)] = torch.tensor(ids)  # the model reads padding
        with torch.no_grad():
            return F.normalize(model(tokens, torch.tensor([len(ids)]))[:, 0].double(), dim=-1)[0]

    for each, query in zip(found, ["rain", "a cat"], strict=True):
        scores = torch.stack([vector(text) @ vector(query) for text in documents])
        best = scores.topk(3)
        assert [row["document"] for row in each["documents"]] == [documents[place] for place in best.indices]
        np.testing.assert_allclose([row["score"] for row in each["documents"]], best.values, atol=1e-6)
    assert found[0]["documents"][0]["document"] == "rain"
    (tmp_path / "texts.txt").write_text("\n".join(documents))
    options = ["--documents", str(tmp_path / "texts.txt"), "--top", "2", "--out", str(tmp_path / "found.csv")]
    assert main(["predict", str(encoders["retrieval"]), "rain", *options]) == 0
    with (tmp_path / "found.csv").open(newline="") as file:
        assert [row["document"] for row in csv.DictReader(file)] == [
            row["document"] for row in found[0]["documents"][:2]
        ]
    with pytest.raises(ValueError, match="searches documents: give them as documents="):
        predictor("rain")


def test_what_does_not_fit_is_refused(digits, language, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((8, 8)))
    file = str(tmp_path / "x.npy")
    for arguments, message in (
        ([str(digits)], "INPUT"),
        ([str(digits), file, "--out", "y.txt"], "--out y.txt must end in .csv or .json"),
        ([str(digits), file, "--steps", "3"], "--steps does not apply"),
        ([str(language), "to be", "--rate", "2"], "rate=2 must be 1: texts have no sampling rate"),
        ([str(language), "to be", "--top-k", "0"], "top_k must be at least 1"),
        ([str(tmp_path / "none"), file], "none is not a run"),
        ([str(digits), file, "--rate", "65"], "rate=65 must be a whole number from 1 to the 64 steps"),
        ([str(digits), file, "--batch-size", "0"], "batch_size"),
    ):
        assert main(["predict", *arguments]) == 2
        assert message in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(digits, unfinished)
    (unfinished / "model.safetensors").unlink()
    assert main(["predict", str(unfinished), file]) == 2
    assert "finish its training" in capsys.readouterr().err


def test_evaluation_at_another_rate(digits, delay, language, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(digits), "--rate", "2"]) == 0
    printed = capsys.readouterr().out
    data, model = mw.data.Digits(limit=16), mw.load_pretrained(digits)
    split = data.split("test")
    with torch.no_grad():
        logits = model(split.inputs[:, ::2], split.lengths // 2, rate=2.0)
    assert "at rate 2" in printed
    assert f"{float(F.cross_entropy(logits, split.targets)):.4f}" in printed
    assert main(["evaluate", str(delay), "--rate", "0.5"]) == 0
    for run, rate, message in (
        (digits, "65", "rate=65 leaves no samples"),
        (digits, "1.5", "rate=1.5 must be a whole number k"),
        (digits, "0", "rate must be above 0"),
        (language, "2", "rate must be 1 for a M2Gpt"),
    ):
        assert main(["evaluate", str(run), "--rate", rate]) == 2
        assert message in capsys.readouterr().err


def test_predictions_of_lightnings_trainer():
    pytest.importorskip("sklearn")
    from lightning.pytorch import Trainer

    data = mw.data.Digits(batch_size=32, limit=40)
    module = mw.train.SequenceModule(mw.models.SequenceModel(1, 10, 8, 1), mw.tasks.Classification(10))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with quietly():
        found = trainer.predict(module, datamodule=data)
    split = data.split("test")
    with torch.no_grad():
        expected = module.model.eval()(split.inputs, split.lengths).softmax(-1)
    torch.testing.assert_close(torch.cat([each["probabilities"] for each in found]), expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([each["classes"] for each in found]), expected.argmax(-1))
