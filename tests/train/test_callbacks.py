import random

import numpy as np
import pytest
import torch

from milkweed._seeding import derived_seed, seed_generators
from milkweed.train.callbacks import read_rows, write_rows


def test_rows_survive_the_file_exactly(tmp_path):
    rows = [{"epoch": 0, "seconds": 1.5, "loss": 0.1 + 0.2}, {"epoch": 1, "seconds": 2.0, "loss": 1e-17, "late": 4}]
    write_rows(tmp_path / "metrics.csv", rows)
    assert read_rows(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "epoch,loss,late,seconds"


def test_a_table_cut_off_anywhere_gives_whole_rows_or_is_named(tmp_path):
    rows, path = [{"epoch": n, "loss": 0.125 + n, "seconds": 12.75} for n in range(3)], tmp_path / "metrics.csv"
    write_rows(path, rows)
    text = path.read_bytes()
    for length in range(len(text)):
        path.write_bytes(text[:length])
        try:
            found = read_rows(path)
        except ValueError as error:
            found = str(error)
        assert found in (rows[:0], rows[:1], rows[:2], rows) or "metrics.csv is damaged" in found


@pytest.mark.parametrize(
    "text", ["", "epoch,epoch,seconds\n1,2,3\n", "epoch,seconds\n1,x\n", "epoch,seconds\n1\n", "epoch\n1\n", "\0\n"]
)
def test_what_is_no_table_of_metrics_is_named(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged \(.*\); resuming the run writes it anew"):
        read_rows(tmp_path / "metrics.csv")


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, epoch, step) for seed in range(4) for epoch in range(4) for step in range(4)}
    assert len(seeds) == 64


def test_all_generators_are_seeded():
    def draw():
        seed_generators(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
