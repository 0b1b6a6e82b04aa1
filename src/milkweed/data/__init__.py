"""Data modules, one file per family; all yield `{"inputs", "targets", "lengths"}`."""

from milkweed.data.base import SequenceClassificationData
from milkweed.data.digits import Digits
from milkweed.data.mnist import Mnist

__all__ = ["Digits", "Mnist", "SequenceClassificationData"]
