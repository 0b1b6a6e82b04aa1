"""Learning curves: loss and metric over the epochs."""

from pathlib import Path
from typing import TYPE_CHECKING

from milkweed.plots.figure import GRID, MUTED, TRAIN_COLOUR, VAL_COLOUR, new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, float]]


def save_learning_curves(
    rows: Rows, path: Path, title: str, best_epoch: int | None = None, metric: str = "accuracy"
) -> None:
    """Draw loss and metric of training and validation over the rows of metrics.csv; a line marks the best epoch."""
    if not rows:
        raise ValueError("rows is empty: there is no finished epoch to draw")
    figure = new_figure(9, 3.6)
    # A name may hold dollar signs, which are no formulas.
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    loss, judged = figure.subplots(1, 2)
    for axes, name in ((loss, "loss"), (judged, metric)):
        _draw(axes, rows, name)
        if best_epoch is not None:
            axes.axvline(best_epoch + 1, color=MUTED, linewidth=0.8, linestyle=":")
    loss.set_yscale("log")
    loss.legend(frameon=False, fontsize=9)
    if best_epoch is not None:
        judged.annotate(
            f"best: epoch {best_epoch + 1}",
            (best_epoch + 1, 0.04 if _rises(rows, f"train_{metric}") else 0.93),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=MUTED,
        )
    save_figure(figure, path)


def _rises(rows: Rows, name: str) -> bool:
    """Whether a curve leaves the lower right corner free, rather than the upper one."""
    return rows[-1].get(name, 0) >= rows[0].get(name, 0)


def _draw(axes: "Axes", rows: Rows, metric: str) -> None:
    for stage, label, colour in (("train", "training", TRAIN_COLOUR), ("val", "validation", VAL_COLOUR)):
        points = [(row["epoch"] + 1, row[f"{stage}_{metric}"]) for row in rows if f"{stage}_{metric}" in row]
        if points:
            # A single epoch is no line; the marker keeps it visible.
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o" if len(points) < 3 else None)
    axes.set_xlabel("epoch", fontsize=9, color=MUTED)
    axes.set_title(metric, loc="left", fontsize=10)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
