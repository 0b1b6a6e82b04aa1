"""Which samples are for training, validation and test, where nobody has said it: always the same ones."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from milkweed.data.base import SPLITS

# Other names that folders, columns and files have for the three.
ALIASES = {"validation": "val", "valid": "val", "dev": "val", "eval": "val", "training": "train", "testing": "test"}


def check_shares(val: float, test: float) -> None:
    """Refuse shares of the samples that leave none for a split."""
    for name, share in (("val", val), ("test", test)):
        if not 0 < share < 1:
            raise ValueError(f"{name}={share} must lie between 0 and 1, both excluded: a share of the samples")
    if val + test >= 1:
        raise ValueError(f"val={val} and test={test} leave nothing to train on; together they must be below 1")


def by_hash(names: Sequence[str], val: float, test: float) -> np.ndarray:
    """Split by a hash of each sample's name: new samples leave the others where they are. Gives a split for each."""
    found = []
    for name in names:
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
        found.append("test" if place < test else "val" if place < test + val else "train")
    return np.array(found)


def split_name(name: object, where: str) -> str:
    """One of the three names for what a file calls a split."""
    known = ALIASES.get(str(name).strip().lower(), str(name).strip().lower())
    if known not in SPLITS:
        raise ValueError(f"{where}: the split {str(name)!r} is none of {', '.join(SPLITS)}")
    return known


def check_classes(owner: str, labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of all classes, in order; refuse one that the training never sees."""
    training = set(labels["train"])
    for split in ("val", "test"):
        unseen = sorted(set(labels[split]) - training)
        if unseen:
            raise ValueError(
                f"{owner}: the class {unseen[0]!r} occurs in the {split} split and not in the training split; add "
                "samples of it, leave it out, or give the splits yourself"
            )
    if len(training) < 2:
        only = f"only one class, {min(training)!r}" if training else "no class"
        raise ValueError(f"{owner}: there is {only}; classification needs two or more")
    return tuple(in_order(training))


def in_order(names: set[str]) -> list[str]:
    """Sort names, numbers among them by their values."""
    numbers = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int) if numbers else sorted(names)
