"""Assembled networks."""

from milkweed.models.base import Model, build_model
from milkweed.models.generate import generate, stream
from milkweed.models.mlp_mixer import MlpMixer
from milkweed.models.pretrained import load_pretrained, save_pretrained
from milkweed.models.sashimi import Sashimi
from milkweed.models.sequence_model import SequenceModel

__all__ = [
    "MlpMixer",
    "Model",
    "Sashimi",
    "SequenceModel",
    "build_model",
    "generate",
    "load_pretrained",
    "save_pretrained",
    "stream",
]
