"""Figures of a run as PNG files."""

from milkweed.plots.confusion import save_confusion_matrix
from milkweed.plots.curves import save_learning_curves

__all__ = ["save_confusion_matrix", "save_learning_curves"]
