"""Assembled networks."""

from milkweed.models.base import Model, build_model
from milkweed.models.forecaster import Forecaster
from milkweed.models.generate import generate, stream
from milkweed.models.hf.gpt2 import Gpt2
from milkweed.models.linear_memory import LinearMemory
from milkweed.models.m2_bert import M2Bert
from milkweed.models.m2_gpt import M2Gpt
from milkweed.models.m2_vit import M2Vit
from milkweed.models.mlp_mixer import MlpMixer
from milkweed.models.sashimi import Sashimi
from milkweed.models.sequence_model import SequenceModel

__all__ = [
    "Forecaster",
    "Gpt2",
    "LinearMemory",
    "M2Bert",
    "M2Gpt",
    "M2Vit",
    "MlpMixer",
    "Model",
    "Sashimi",
    "SequenceModel",
    "build_model",
    "generate",
    "stream",
]
