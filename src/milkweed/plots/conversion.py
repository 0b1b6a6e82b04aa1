"""Figures of a conversion, as SVG."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.groups import LayerGroup, by_kind, depth
from milkweed.plots.figure import GRID, MUTED, TRAIN_COLOUR, VAL_COLOUR, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#c2410c", "#1e4e79", "#7c3aed", "#15803d", "#be185d", "#0e7490", "#a16207", "#44403c")
_MARKERS = "os^Dv"
_LONGEST_LABEL = 48


def draw_errors(report: ConversionReport) -> bytes:
    """Draw the error of each converted layer over its depth, a line for each kind, as SVG."""
    fields = {"output_error": "Error of the outputs", "relative_error": "Error of the weights"}
    groups = by_kind(report.converted)
    shown = {field: title for field, title in fields.items() if any(group.extremes(field) for group in groups)}
    figure = new_figure(9.0, 3.4 + 0.16 * len(groups))
    for number, (field, title) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(1, len(shown), number)
        for index, group in enumerate(groups):
            points = sorted((depth(line), getattr(line, field)) for line in group.lines)
            colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=_label(group))
        _grid(axes, "y")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("block", fontsize=9, color=MUTED)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8, labelcolor=MUTED)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure)


def draw_losses(losses: Sequence[float]) -> bytes:
    """Draw the loss of distillation over its steps, as SVG."""
    figure = new_figure(9.0, 2.6)
    axes = figure.add_subplot()
    axes.plot(range(1, len(losses) + 1), losses, color=TRAIN_COLOUR, linewidth=1)
    axes.set_yscale("log")
    _grid(axes, "y")
    axes.set_xlabel("step", fontsize=9, color=MUTED)
    return _svg(figure)


def draw_costs(report: ConversionReport) -> bytes:
    """Draw parameters and FLOPs before and after, by kind of layer, as SVG."""
    groups = by_kind(report.layers)
    labels = [_label(group) for group in groups]
    parameters = [(group.total("parameters_before"), group.total("parameters_after")) for group in groups]
    rest = report.model_parameters - sum(before for before, _ in parameters)
    flops = [(group.total("flops_before"), group.total("flops_after")) for group in groups]
    figure = new_figure(9.0, 1.6 + 0.34 * (len(groups) + 1))
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, [*parameters, (rest, rest)], 1e6, "million parameters")
    _bars(right, flops, 1e6, "million FLOPs per token, linear layers")
    left.set_yticks(range(len(groups) + 1), [*labels, "embeddings, norms and all else"], parse_math=False)
    left.invert_yaxis()
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=MUTED)
    return _svg(figure)


def draw_speed(before: float, after: float) -> bytes:
    """Draw how many seconds the whole model takes before and after, as SVG."""
    figure = new_figure(9.0, 1.5)
    axes = figure.subplots()
    bars = axes.barh(["dense", "converted"], [1e3 * before, 1e3 * after], color=[TRAIN_COLOUR, VAL_COLOUR], height=0.6)
    axes.bar_label(bars, fmt="%.3g ms", padding=4, fontsize=9, color=MUTED)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds", fontsize=9, color=MUTED)
    plain(axes)
    return _svg(figure)


def _bars(axes: "Axes", counts: list[tuple[int, int]], unit: float, title: str) -> None:
    for offset, index, colour, label in ((-0.2, 0, TRAIN_COLOUR, "dense"), (0.2, 1, VAL_COLOUR, "converted")):
        places = [row + offset for row in range(len(counts))]
        axes.barh(places, [count[index] / unit for count in counts], height=0.38, color=colour, label=label)
    _grid(axes, "x")
    axes.set_title(title, loc="left", fontsize=10)


def _grid(axes: "Axes", axis: str) -> None:
    axes.grid(axis=axis, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    plain(axes)


def _label(group: LayerGroup) -> str:
    return group.name if len(group.name) <= _LONGEST_LABEL else f"…{group.name[-_LONGEST_LABEL + 1 :]}"


def _svg(figure: "Figure") -> bytes:
    import matplotlib

    written = io.BytesIO()
    # The same conversion gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "milkweed"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
