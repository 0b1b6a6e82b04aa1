"""How raw inputs become what models read, as a run folder keeps it."""

from milkweed.data.preprocessing.base import FILE, Preprocessing, Sample, check_finite, described, read_preprocessing
from milkweed.data.preprocessing.signals import GreyImages, Signals
from milkweed.data.preprocessing.texts import Prompts, Sentences

__all__ = [
    "FILE",
    "GreyImages",
    "Preprocessing",
    "Prompts",
    "Sample",
    "Sentences",
    "Signals",
    "check_finite",
    "described",
    "read_preprocessing",
]
