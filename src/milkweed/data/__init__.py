"""Data modules, one file per family; all yield `{"inputs", "targets", "lengths"}`."""

from milkweed.data.base import SequenceClassificationData, SequenceData
from milkweed.data.digits import Digits
from milkweed.data.glue import Glue
from milkweed.data.masked_text import MaskedText
from milkweed.data.mnist import Mnist
from milkweed.data.preprocessing import GreyImages, Preprocessing, Prompts, Sentences, Signals
from milkweed.data.retrieval import Retrieval
from milkweed.data.text import Text
from milkweed.data.white_noise import Delay, Reconstruct

__all__ = [
    "Delay",
    "Digits",
    "Glue",
    "GreyImages",
    "MaskedText",
    "Mnist",
    "Preprocessing",
    "Prompts",
    "Reconstruct",
    "Retrieval",
    "Sentences",
    "SequenceClassificationData",
    "SequenceData",
    "Signals",
    "Text",
]
