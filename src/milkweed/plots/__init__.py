"""Figures of runs."""

from milkweed.plots.comparison import save_comparison_figure
from milkweed.plots.confusion import save_confusion_matrix
from milkweed.plots.curves import save_learning_curves
from milkweed.plots.predictions import save_predictions

__all__ = ["save_comparison_figure", "save_confusion_matrix", "save_learning_curves", "save_predictions"]
