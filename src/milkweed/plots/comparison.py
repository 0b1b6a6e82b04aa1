"""Runs beside each other: what they reach against what they cost, and how they got there."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milkweed.plots.figure import BLUE, GRID, MUTED, VAL_COLOUR, new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of equal weight on white, and told apart by people who do not see red and green.
COLOURS = (BLUE, VAL_COLOUR, "#0f766e", "#a21caf", "#ca8a04", "#475569", "#0284c7", "#9f1239", "#65a30d", "#7c3aed")
STYLES = ("-", "--", ":", "-.")
LABEL_GAP = 11  # points between the middles of two names


@dataclass(frozen=True)
class Curve:
    """Runs of one name: cost and test metric of each, and its validation metric as (epoch, value) pairs."""

    name: str
    x: list[float]
    y: list[float]
    curves: list[list[tuple[float, float]]]


@dataclass(frozen=True)
class Panel:
    """Runs that were judged alike."""

    title: str
    metric: str
    larger_is_better: bool | None
    curves: list[Curve]


def save_comparison_figure(panels: Sequence[Panel], path: Path, x_title: str) -> None:
    """Draw a row for each panel: the test metric against x with names, and the learning curves on shared axes."""
    if not panels:
        raise ValueError("panels is empty: there is no finished run to draw")
    most = max(len(panel.curves) for panel in panels)
    figure = new_figure(9.6, max(3.6, 1.6 + 0.22 * most) * len(panels))
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for panel, (costs, curves) in zip(panels, grid, strict=True):
        if _worth_an_axis(panel):
            _draw_costs(costs, panel, x_title)
        else:
            _draw_ranking(costs, panel)
        _draw_curves(curves, panel)
        if len(panels) > 1:
            costs.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    save_figure(figure, path)


def _worth_an_axis(panel: Panel) -> bool:
    """Whether the runs differ in what they cost."""
    known = [value for curve in panel.curves for value in curve.x if math.isfinite(value)]
    complete = all(any(map(math.isfinite, curve.x)) for curve in panel.curves)
    return complete and bool(known) and max(known) > 1.01 * min(known)


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0


def _draw_costs(axes: "Axes", panel: Panel, x_title: str) -> None:
    """The test metric against a cost: seeds faint, means with their spread and names."""
    points = []
    for number, curve in enumerate(panel.curves):
        colour, _ = _style(number)
        x, y = statistics.fmean(filter(math.isfinite, curve.x)), _mean(curve.y)
        if len(curve.y) > 1:
            axes.scatter(curve.x, curve.y, s=12, color=colour, alpha=0.35, linewidths=0)
        axes.errorbar(x, y, _spread(curve.y) or None, fmt="o", color=colour, markersize=5.5, capsize=2.5, linewidth=1.2)
        if math.isfinite(y):
            points.append((x, y, curve.name, colour))
    known = [value for curve in panel.curves for value in curve.x if math.isfinite(value)]
    if max(known) > 3 * min(known) > 0:
        axes.set_xscale("log")
    _with_prefixes(axes.xaxis)
    axes.margins(0.12, 0.12)
    _metric_axis(axes.yaxis, panel)
    axes.set_xlabel(x_title, fontsize=9, color=MUTED)
    axes.set_ylabel(f"test {panel.metric}", fontsize=9, color=MUTED)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    plain(axes)
    _name_points(axes, points)


def _with_prefixes(axis) -> None:
    """Write large and small numbers with a prefix: 40k."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if axis.get_scale() == "log" else MaxNLocator(5))


def _name_points(axes: "Axes", points: list[tuple[float, float, str, str]]) -> None:
    """Write names beside points, towards the middle, apart from each other."""
    figure = axes.figure
    figure.canvas.draw()  # which settles scales and sizes
    scale = 72 / figure.dpi
    box = axes.get_window_extent()
    sides: dict[bool, list[tuple[float, tuple[float, float, str, str]]]] = {True: [], False: []}
    for point in points:
        place = axes.transData.transform(point[:2])
        sides[place[0] < (box.x0 + box.x1) / 2].append((place[1] * scale, point))
    for right, group in sides.items():
        group.sort(key=lambda each: each[0])
        heights = spread_out([height for height, _ in group], LABEL_GAP)
        for (height, (x, y, name, colour)), wanted in zip(group, heights, strict=True):
            axes.annotate(
                name,
                (x, y),
                xytext=(7 if right else -7, wanted - height),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
                color=colour,
                parse_math=False,
            )


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Move rising places as little as it takes for each to be at least a gap above the one before."""
    blocks: list[list[float]] = []  # middle and number of places that touch each other
    for place in places:
        blocks.append([place, 1])
        while len(blocks) > 1:
            (low, fewer), (high, more) = blocks[-2:]
            if high - low >= gap * (fewer + more) / 2:
                break
            blocks[-2:] = [[(low * fewer + high * more) / (fewer + more), fewer + more]]
    return [middle + gap * (number - (count - 1) / 2) for middle, count in blocks for number in range(int(count))]


def _draw_ranking(axes: "Axes", panel: Panel) -> None:
    """Runs of equal cost: a line for each name."""
    count = len(panel.curves)
    for number, curve in enumerate(panel.curves):
        colour, _ = _style(number)
        height = count - 1 - number
        if len(curve.y) > 1:
            axes.scatter(curve.y, [height] * len(curve.y), s=12, color=colour, alpha=0.35, linewidths=0)
        spread = _spread(curve.y) or None
        axes.errorbar(
            _mean(curve.y), height, xerr=spread, fmt="o", color=colour, markersize=5.5, capsize=2.5, linewidth=1.2
        )
    labels = axes.set_yticks(range(count), [curve.name for curve in reversed(panel.curves)])
    for label in labels:
        label.label1.set_parse_math(False)
    axes.set_ylim(-0.6, count - 0.4)
    axes.margins(x=0.12)
    _metric_axis(axes.xaxis, panel)
    axes.set_xlabel(f"test {panel.metric}", fontsize=9, color=MUTED)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    plain(axes)
    axes.tick_params(axis="y", length=0, labelsize=8.5)


def _draw_curves(axes: "Axes", panel: Panel) -> None:
    """Mean validation metric over the epochs, and the range of the seeds."""
    for number, curve in enumerate(panel.curves):
        colour, style = _style(number)
        epochs = sorted(set.intersection(*(set(dict(each)) for each in curve.curves)) if curve.curves else ())
        values = [[dict(each)[epoch] for each in curve.curves] for epoch in epochs]
        means = [statistics.fmean(each) for each in values]
        marker = "o" if len(epochs) < 3 else None
        axes.plot(epochs, means, style, color=colour, linewidth=1.5, label=curve.name, marker=marker, markersize=4)
        if len(curve.curves) > 1 and epochs:
            low, high = [min(each) for each in values], [max(each) for each in values]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
    drawn = [value for curve in panel.curves for each in curve.curves for _, value in each]
    if panel.larger_is_better is False and drawn and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
    _metric_axis(axes.yaxis, panel)
    axes.set_xlabel("epoch", fontsize=9, color=MUTED)
    axes.set_ylabel(f"validation {panel.metric}", fontsize=9, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    _legend(axes, panel)


def _legend(axes: "Axes", panel: Panel) -> None:
    """Name the curves, inside where few of them leave a corner free, else at the side."""
    few = len(panel.curves) <= 6
    ends = [(each[0][1], each[-1][1]) for curve in panel.curves for each in curve.curves if each]
    rises = sum(end > start for start, end in ends) * 2 >= len(ends)
    corner = "lower right" if rises else "upper right"
    place = {"loc": corner} if few else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    found = axes.legend(frameon=few, framealpha=0.8, edgecolor="none", fontsize=8, handlelength=1.6, **place)
    for text in found.get_texts():
        text.set_parse_math(False)


def _metric_axis(axis, panel: Panel) -> None:
    """Write accuracies as percentages."""
    if panel.metric == "accuracy":
        from matplotlib.ticker import PercentFormatter

        axis.set_major_formatter(PercentFormatter(1))
