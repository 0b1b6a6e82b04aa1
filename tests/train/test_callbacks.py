import random

import numpy as np
import torch

from milkweed.train.callbacks import read_rows, write_rows
from milkweed.train.seeding import derived_seed, seed_generators


def test_rows_survive_the_file_exactly(tmp_path):
    rows = [{"epoch": 0, "seconds": 1.5, "loss": 0.1 + 0.2}, {"epoch": 1, "seconds": 2.0, "loss": 1e-17, "late": 4}]
    write_rows(tmp_path / "metrics.csv", rows)
    assert read_rows(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "epoch,loss,late,seconds"


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, epoch, step) for seed in range(4) for epoch in range(4) for step in range(4)}
    assert len(seeds) == 64


def test_all_generators_are_seeded():
    def draw():
        seed_generators(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
