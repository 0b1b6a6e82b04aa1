"""Trainings of encoders of tokens that are interrupted continue bit for bit, masks and negatives included."""

import csv
from pathlib import Path

import pytest
import torch

from milkweed.cli import main
from milkweed.convert import load_pretrained

TEXTS = Path(__file__).parents[1] / "data" / "texts"
RECIPES = {
    "m2-bert-mlm": ["--data.source", __file__, "--data.limit", "16", "--trainer.accumulate_grad_batches", "1"],
    "m2-bert-glue": ["--data.source", str(TEXTS / "stsb"), "--data.limit", "16"],
    "m2-bert-retrieval": [
        *("--data.source", str(TEXTS / "pairs"), "--data.documents", "null", "--data.negatives", "2"),
        *("--data.limit", "16", "--task.lr", "0.001"),
    ],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_within_an_epoch_repeats_the_rest(recipe, tmp_path):
    tiny = [
        *("--data.tokenizer", str(TEXTS / "tokenizer"), "--data.vocabulary_size", "192", "--data.length", "16"),
        *("--data.batch_size", "4", "--model.d_model", "16", "--model.depth", "1", "--trainer.max_epochs", "2"),
        *("--trainer.checkpoint_every_n_steps", "3", "--task.warmup_steps", "0"),
    ]
    folder = tmp_path / recipe
    assert main(["train", recipe, "--out", str(tmp_path), *tiny, *RECIPES[recipe]]) == 0
    rows, weights = metrics(folder), load_pretrained(folder).state_dict()
    assert [row["step"] for row in rows] == ["4", "8"]
    checkpoint = folder / "checkpoints" / "step-000000006.ckpt"
    assert main(["train", recipe, "--out", str(tmp_path), "--resume", str(checkpoint)]) == 0
    assert metrics(folder) == rows
    again = load_pretrained(folder).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def metrics(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
