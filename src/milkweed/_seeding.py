"""Seeds derived from the run's seed, so that every epoch and step can be repeated without stored generator state."""

import random

import numpy as np
import torch


def derived_seed(seed: int, *keys: int) -> int:
    """Mix a seed with keys (epoch, step, rank, …), all zero or larger, into a well-spread one in [0, 2³²)."""
    return int(np.random.SeedSequence([seed, *keys]).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices) by an integer in [0, 2³²)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
