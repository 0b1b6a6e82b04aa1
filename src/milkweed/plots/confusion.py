"""Confusion matrices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from milkweed.plots.figure import MUTED, new_figure, save_figure

MOST_WRITTEN_CLASSES = 30


def save_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], path: Path, title: str) -> None:
    """Draw counts of true classes (rows) against predicted ones; the colour is the share of the true class."""
    count = len(class_names)
    if matrix.shape != (count, count):
        raise ValueError(f"matrix has shape {matrix.shape}; expected {(count, count)} for {count} class names")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(3.2 + 0.32 * count, 12)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    axes.set_xlabel("predicted", fontsize=9, color=MUTED)
    axes.set_ylabel("true", fontsize=9, color=MUTED)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=MUTED)
    if count <= MOST_WRITTEN_CLASSES:
        axes.set_xticks(range(count), class_names)
        axes.set_yticks(range(count), class_names)
        _write_counts(axes, matrix, shares)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=MUTED)
    bar.set_label("share of the true class", fontsize=8, color=MUTED)
    save_figure(figure, path)


def _write_counts(axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.6 else "#3f3f46"
        axes.text(column, row, int(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
