"""Assembled networks."""

from milkweed.models.base import Model, build_model
from milkweed.models.generate import generate, stream
from milkweed.models.hf.gpt2 import Gpt2
from milkweed.models.linear_memory import LinearMemory
from milkweed.models.mlp_mixer import MlpMixer
from milkweed.models.sashimi import Sashimi
from milkweed.models.sequence_model import SequenceModel

__all__ = [
    "Gpt2",
    "LinearMemory",
    "MlpMixer",
    "Model",
    "Sashimi",
    "SequenceModel",
    "build_model",
    "generate",
    "stream",
]
