"""How raw inputs become what models read, as a run folder keeps it."""

from milkweed.data.preprocessing.base import FILE, Preprocessing, Sample, check_finite, described, read_preprocessing
from milkweed.data.preprocessing.images import Images
from milkweed.data.preprocessing.recordings import Recordings
from milkweed.data.preprocessing.series import Series
from milkweed.data.preprocessing.signals import GreyImages, Signals
from milkweed.data.preprocessing.texts import Prompts, Sentences
from milkweed.data.preprocessing.tokens import Bytes, Tokens

__all__ = [
    "FILE",
    "Bytes",
    "GreyImages",
    "Images",
    "Preprocessing",
    "Prompts",
    "Recordings",
    "Sample",
    "Sentences",
    "Series",
    "Signals",
    "Tokens",
    "check_finite",
    "described",
    "read_preprocessing",
]
