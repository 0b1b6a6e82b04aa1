"""Functions of time that approach a limit as a size N grows, and how far they are from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from milkweed.plots.figure import GRID, MUTED, new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#c2410c", "#1e4e79", "#7c3aed", "#15803d")


@dataclass(frozen=True)
class Approach:
    """A row of panels, one for each N."""

    title: str  # what the functions are
    times: Tensor  # (T,)
    limit: Tensor  # (count, T), what they should become
    found: Mapping[int, Tensor]  # N to (count, T), what they are


def save_convergence(
    rows: Sequence[Approach], errors: Mapping[str, Mapping[int, float]], path: Path, title: str
) -> None:
    """Draw functions over time, a panel for each N, and beside them errors, by name and N, which may have further N."""
    if not rows or any(list(row.found) != list(rows[0].found) for row in rows):
        raise ValueError(f"rows must be of the same sizes N, at least one; got {[list(row.found) for row in rows]}")
    sizes = list(rows[0].found)
    figure = new_figure(2.6 * len(sizes) + 4.2, max(2.6 * len(rows) + 0.4, 3.4))
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    grid = figure.add_gridspec(len(rows), len(sizes) + 1, width_ratios=[1] * len(sizes) + [1.35])
    for row, approach in enumerate(rows):
        for column, size in enumerate(sizes):
            axes = figure.add_subplot(grid[row, column])
            _draw_functions(axes, approach, size)
            axes.set_title(f"N = {size}" if row == 0 else "", loc="left", fontsize=10)
            if column == 0:
                axes.set_ylabel(approach.title, fontsize=9, color=MUTED)
            if row == len(rows) - 1:
                axes.set_xlabel("t", fontsize=9, color=MUTED)
    _draw_errors(figure.add_subplot(grid[:, -1]), errors)
    save_figure(figure, path)


def _draw_functions(axes: "Axes", approach: Approach, size: int) -> None:
    low, high = float(approach.limit.min()), float(approach.limit.max())
    # The limit sets the scale: what does not approach it leaves the picture, in every panel alike.
    margin = 0.35 * (high - low)
    axes.set(xlim=(0, float(approach.times[-1])), ylim=(low - margin, high + margin))
    axes.axhline(0, color=GRID, linewidth=0.8)
    for n, (found, limit) in enumerate(zip(approach.found[size], approach.limit, strict=True)):
        axes.plot(approach.times, found, color=_COLOURS[n % len(_COLOURS)], linewidth=0.7)
        axes.plot(approach.times, limit, color="black", linewidth=1.0, linestyle=(0, (1, 1.8)))
    plain(axes)


def _draw_errors(axes: "Axes", errors: Mapping[str, Mapping[int, float]]) -> None:
    for n, (name, by_size) in enumerate(errors.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        axes.plot(list(by_size), list(by_size.values()), color=colour, marker="o", markersize=4, label=name)
    sizes = sorted({size for by_size in errors.values() for size in by_size})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title("Error against N", loc="left", fontsize=10)
    axes.set_xlabel("N", fontsize=9, color=MUTED)
    axes.legend(loc="lower left", frameon=False, fontsize=8, labelcolor=MUTED)
    plain(axes)
