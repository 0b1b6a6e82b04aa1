"""Data modules, one file per family; all yield `{"inputs", "targets", "lengths"}`."""

from milkweed.data.arrays import Arrays
from milkweed.data.base import SequenceClassificationData, SequenceData
from milkweed.data.csv_forecast import CsvForecast
from milkweed.data.digits import Digits
from milkweed.data.glue import Glue
from milkweed.data.hugging_face import HuggingFace
from milkweed.data.image_folder import ImageFolder
from milkweed.data.masked_text import MaskedText
from milkweed.data.mnist import Mnist
from milkweed.data.preprocessing import (
    Bytes,
    GreyImages,
    Images,
    Preprocessing,
    Prompts,
    Recordings,
    Sentences,
    Series,
    Signals,
    Tokens,
)
from milkweed.data.retrieval import Retrieval
from milkweed.data.text import Text
from milkweed.data.wav_folder import WavFolder
from milkweed.data.white_noise import Delay, Reconstruct

__all__ = [
    "Arrays",
    "Bytes",
    "CsvForecast",
    "Delay",
    "Digits",
    "Glue",
    "GreyImages",
    "HuggingFace",
    "ImageFolder",
    "Images",
    "MaskedText",
    "Mnist",
    "Preprocessing",
    "Prompts",
    "Reconstruct",
    "Recordings",
    "Retrieval",
    "Sentences",
    "SequenceClassificationData",
    "SequenceData",
    "Series",
    "Signals",
    "Text",
    "Tokens",
    "WavFolder",
]
