import csv
import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from milkweed.data import Glue
from milkweed.data.glue import GLUE
from milkweed.data.tokenized import frame
from milkweed.data.tokenizers import train_tokenizer

FIRST = [f"the cat number {number} sat on the mat" for number in range(40)]
SECOND = [f"a cat sat {number} times" for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer("\n".join(FIRST + SECOND), 120).save_pretrained(folder)
    return str(folder)


def write(folder, task, splits=("train", "validation"), label=None, header=True):
    fields = GLUE[task].fields
    for split in splits:
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow([*fields, "label"])
            for number, texts in enumerate(zip(FIRST, SECOND, strict=True)):
                own = number % max(2, len(GLUE[task].classes)) if label is None else label
                writer.writerow([*texts[: len(fields)], own])
    return str(folder)


def make(source, tokenizer, task="stsb", **options):
    return Glue(task, tokenizer, source, **{"vocabulary_size": 120, "length": 32, "batch_size": 4, **options})


@pytest.mark.parametrize("task", GLUE)
def test_every_task_is_read(task, tokenizer, tmp_path):
    source = write(tmp_path, task, ("train", GLUE[task].development))
    data = make(source, tokenizer, task)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [36, 4, 40]
    assert data.d_output == (3 if task == "mnli" else 1 if task == "stsb" else 2)
    assert data.judged_by == {"stsb": "pearson", "cola": "matthews", "mrpc": "f1", "qqp": "f1"}.get(task, "accuracy")
    batch = data.split("test")[[0, 1, 2]]
    assert batch["targets"].tolist() == [0, 1, 2 if task == "mnli" else 0]
    assert batch["targets"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    text = data.tokenizer.decode(batch["inputs"][1, : batch["lengths"][1]])
    pair = len(GLUE[task].fields) == 2
    assert text == f"[CLS] {FIRST[1]} [SEP]" + (f" {SECOND[1]} [SEP]" if pair else "")
    types = batch["token_types"][1, : batch["lengths"][1]].tolist()
    first = 1 + len(data.tokenizer.tokenize(FIRST[1])) + 1
    assert types == [0] * first + [1] * (len(types) - first)
    assert (len(types) > first) == pair


def test_train_and_validation_share_the_training_file_whatever_the_seed(tokenizer, tmp_path):
    source = write(tmp_path, "stsb")
    one, other = (make(source, tokenizer, seed=seed) for seed in (0, 1))
    rows = []
    for name in ("train", "val"):
        assert torch.equal(one.split(name).inputs, other.split(name).inputs)
        rows += one.split(name).inputs.tolist()
    assert sorted(rows) == sorted(one.split("test").inputs.tolist())


def test_batches_are_as_long_as_their_longest_or_whole(tokenizer, tmp_path):
    source = write(tmp_path, "stsb")
    for whole in (False, True):
        batch = next(iter(make(source, tokenizer, whole=whole, length=30).train_dataloader()))
        steps = 30 if whole else int(batch["lengths"].max())
        assert batch["inputs"].shape == batch["token_types"].shape == (4, steps)
        for row, length in zip(batch["inputs"], batch["lengths"], strict=True):
            assert (row[length:] == 0).all()
            assert row[length - 1] == 3


def test_long_pairs_are_cut(tokenizer, tmp_path):
    data = make(write(tmp_path, "stsb"), tokenizer, length=9)
    split = data.split("train")
    assert (split.lengths == 9).all()
    assert ((split.inputs == 3).sum(1) == 2).all()


def test_a_table_without_header_and_the_name_dev(tokenizer, tmp_path):
    data = make(write(tmp_path, "stsb", ("train", "dev"), header=False), tokenizer)
    assert len(data.split("test")) == 40


def test_classes_may_be_named_and_another_split_tested(tokenizer, tmp_path):
    source = write(tmp_path, "mnli", ("train", "validation_mismatched"), label="neutral")
    data = make(source, tokenizer, "mnli", test_split="validation_mismatched", limit=3)
    assert data.split("test").targets.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("stsb", "5.5", r"train split has the label '5\.5', expected a number from 0 to 5; clean it"),
        ("stsb", "much", "has the label 'much', expected a number"),
        ("rte", "2", r"label '2', expected 0 … 1 or entailment, not_entailment; clean it, or use another data\.task"),
        ("rte", "0.5", r"label '0\.5'"),
        ("rte", "-1", "it has no labels; drop such rows"),
    ],
)
def test_labels_out_of_range_are_refused(tokenizer, tmp_path, task, label, message):
    with pytest.raises(ValueError, match=message):
        make(write(tmp_path, task, label=label), tokenizer, task).setup()


def test_what_is_missing_is_named(tokenizer, tmp_path):
    source = write(tmp_path, "stsb", ("train",))
    with pytest.raises(ValueError, match=r"has no split validation, but train; add a file validation.csv, or name"):
        make(source, tokenizer).setup()
    with pytest.raises(ValueError, match="lacks question1, question2: its first row is sentence1, sentence2, label"):
        make(source, tokenizer, "qqp").setup()
    with pytest.raises(ValueError, match="task='sts' is not a task of GLUE: cola, sst2"):
        make(source, tokenizer, "sts")
    write(tmp_path, "stsb")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        make(source, source).setup()
    with pytest.raises(ValueError, match=r"data\.tokenizer is missing: name the folder of the model"):
        make(source, None).setup()


@pytest.mark.parametrize("field", ["sentence1", "label"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_cells_that_are_no_text_are_refused(tokenizer, tmp_path, field, value):
    rows = [{"sentence1": "a cat", "sentence2": "a dog", "label": 1.0} | {field: value} for _ in range(20)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=re.escape(f"{value!r}")) as error:
        make(str(tmp_path), tokenizer).setup()
    assert "train split has" in str(error.value)


def test_too_few_rows_for_a_validation_split(tokenizer, tmp_path):
    source = write(tmp_path, "stsb")
    file = tmp_path / "train.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:10]))
    with pytest.raises(ValueError, match=r"the split train has 9 rows; a tenth of them is kept .* at least 10"):
        make(source, tokenizer).setup()


def test_pairs_are_cut_as_the_tokenizer_would(tokenizer):
    # The expected rows are the tokenizer's own; what it leaves over grows with the product of the two lengths, and
    # for texts as long as the last pair does not fit into memory.
    random = np.random.RandomState(0)
    words = ["the", "cat", "sat", "near", "fields", "eats", "Üñusual", "☃", "don't", "e-mail", "unbelievable"]
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    for _ in range(200):
        pair = [" ".join(random.choice(words, random.randint(25))) for _ in range(2)]
        length = int(random.choice([4, 5, 8, 16, 31]))
        tokens, types, lengths = frame(loaded, pair[:1], pair[1:], length)
        expected = loaded(pair[:1], pair[1:], truncation=True, max_length=length, return_token_type_ids=True)
        assert tokens[0, : lengths[0]].tolist() == expected["input_ids"][0]
        assert types[0, : lengths[0]].tolist() == expected["token_type_ids"][0]
    tokens, _, lengths = frame(loaded, ["the cat " * 5000], ["a dog " * 5000], 16)
    assert lengths.tolist() == [16]
