"""The two examples on long documents, one after the other, on texts made up here."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from milkweed.cli import main
from milkweed.data.retrieval_sets import read_sets

ROOT = Path(__file__).parents[2]
WORDS = [f"{first}{last}" for first in ("mo", "ka", "ti", "su") for last in ("ra", "lin", "pot", "ven", "dor")]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentences(count, seed, end):
    random = np.random.RandomState(seed)
    return [" ".join(random.choice(WORDS, size=10)) + end for _ in range(count)]


@pytest.fixture
def made(tmp_path, monkeypatch):
    articles = [f"\n = Article {n} = \n\n " + " ".join(sentences(40, n, " .")) for n in range(10)]
    (tmp_path / "articles.txt").write_text("".join(articles) + "\n")
    speeches = [f"{WORDS[n % 20].title()}:\n{text}" for n, text in enumerate(sentences(400, 99, "."))]
    (tmp_path / "plays.txt").write_text("\n\n".join(speeches))
    module = load("long_document_sets")
    monkeypatch.setattr(module, "WORDS", 120)
    monkeypatch.setattr(module, "BEHIND", 40)
    monkeypatch.setattr(module, "PACKAGES", ("numpy",))
    module.main(tmp_path / "articles.txt", tmp_path / "plays.txt", tmp_path / "made")
    return tmp_path / "made"


def test_sets_are_made_and_encoders_compared(made, tmp_path, monkeypatch, capsys):
    splits = read_sets(str(made / "sets"), None)
    for split in ("train", "validation", "test"):
        assert [each.name for each in splits[split]] == ["docstrings", "encyclopedia", "plays"]
    for number in (1, 2):
        parts = [splits[split][number] for split in ("train", "validation", "test")]
        answers = [{passage for known in part.gains.values() for passage in known} for part in parts]
        assert not answers[0] & answers[1]
        assert not (answers[0] | answers[1]) & answers[2]
        for part in parts:
            for query, known in part.gains.items():
                (passage,) = known
                assert part.queries[query] not in part.passages[passage]
                assert len(part.passages[passage].split()) >= 40
    tested = {part.passages[p] for part in splits["test"] for known in part.gains.values() for p in known}
    text = (made / "pretrain.txt").read_text()
    assert not any(each in text for each in tested)

    small = [
        "--out",
        str(tmp_path),
        "--data.vocabulary_size",
        "512",
        "--data.length",
        "32",
        "--trainer.max_epochs",
        "1",
    ]
    small += ["--model.d_model", "16", "--model.depth", "1", "--model.pre_norm", "false", "--data.limit", "32"]
    pretrain = ["--data.source", str(made / "pretrain.txt"), "--trainer.accumulate_grad_batches", "1"]
    pretrain += ["--data.tokenizer", "null", "--data.batch_size", "8"]
    assert main(["train", "m2-bert-mlm", "--name", "mlm", *small, *pretrain]) == 0
    tuned = ["--data.source", str(made / "passages"), "--data.documents", "null", "--model.padding", "masked"]
    tuned += ["--data.tokenizer", str(tmp_path / "mlm"), "--task.pretrained", str(tmp_path / "mlm")]
    tuned += ["--data.negatives", "0", "--task.in_batch", "true", "--data.batch_size", "8", "--data.whole", "false"]
    assert main(["train", "m2-bert-retrieval", "--name", "tuned", *small, *tuned]) == 0

    arguments = [str(made / "sets"), str(tmp_path / "mlm"), str(tmp_path / "tuned"), "--lengths", "32", "64"]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments, "--out", str(tmp_path / "table.json")])
    load("long_document_retrieval").main()
    table = json.loads((tmp_path / "table.json").read_text())
    expected = [(name, length) for length in (32, 64) for name in ("TF-IDF", "random", "pretrained", "tuned")]
    assert [(row["encoder"], row["length"]) for row in table] == expected
    words = {row["length"]: row for row in table if row["encoder"] == "TF-IDF"}
    assert words[64]["docstrings"] > words[32]["docstrings"]
