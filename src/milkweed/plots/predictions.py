"""Predictions of a run: forecasts behind what they follow, probabilities of classes, numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milkweed.plots.figure import BLUE, GRID, MUTED, VAL_COLOUR, new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 8
INPUTS = 12
CLASSES = 5
SHOWN_BEFORE = 4
"""Of the rows before a forecast, so many times its own length are drawn."""


def save_predictions(found: Sequence[Mapping[str, Any]], path: Path, before: Sequence[Any] = ()) -> None:
    """Draw predictions, as a predictor gives them, into a file.

    `before` holds, for each forecast, what it follows: a mapping of column names to numbers, and under `time` their
    time stamps if there are some. At most 8 series, and 12 inputs with classes, are drawn.
    """
    if not found:
        raise ValueError("there is no prediction to draw")
    if "steps" in found[0]:
        _draw_series(found, path, before)
    elif "probabilities" in found[0]:
        _draw_classes(found[:INPUTS], path)
    elif "value" in found[0] or "values" in found[0]:
        _draw_numbers(found, path)
    else:
        raise ValueError(
            f"there is no picture of {', '.join(found[0])}; pictures are of classes, numbers and forecasts"
        )


def _draw_series(found: Sequence[Mapping[str, Any]], path: Path, before: Sequence[Any]) -> None:
    series = [
        (each["input"], name, each["steps"], before[place] if place < len(before) else None)
        for place, each in enumerate(found)
        for name in _columns(each["steps"][0])
    ][:PANELS]
    figure = new_figure(8.0, 0.6 + 1.7 * len(series))
    grid = figure.subplots(len(series), 1, squeeze=False)[:, 0]
    for axes, (source, name, steps, past) in zip(grid, series, strict=True):
        _draw_one(axes, name, steps, past)
        title = name if len(found) == 1 else f"{Path(str(source)).name}: {name}"
        axes.set_title(title, loc="left", fontsize=9, parse_math=False)
    if before:
        grid[0].legend(frameon=False, fontsize=8, labelcolor=MUTED, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def _columns(step: Mapping[str, Any]) -> list[str]:
    """Names of the numbers of a step; a list of them has places."""
    names = [name for name in step if name not in {"step", "time"}]
    return [f"values[{place}]" for place in range(len(step["values"]))] if names == ["values"] else names


def _draw_one(axes: "Axes", name: str, steps: Sequence[Mapping[str, Any]], past: Mapping[str, Any] | None) -> None:
    values = [_number(step, name) for step in steps]
    places = _places([step.get("time", step.get("step")) for step in steps])
    if past is not None:
        rows = past[name][-SHOWN_BEFORE * len(values) :]
        earlier = _places(past["time"][-len(rows) :]) if "time" in past else np.arange(1 - len(rows), 1)
        axes.plot(earlier, rows, color=MUTED, linewidth=1.0, label="read")
        axes.plot([earlier[-1], places[0]], [rows[-1], values[0]], color=VAL_COLOUR, linewidth=1.0, alpha=0.5)
    axes.plot(
        places,
        values,
        color=VAL_COLOUR,
        linewidth=1.5,
        marker="." if len(values) == 1 else None,
        label="forecast" if past is not None else None,
    )
    axes.grid(color=GRID, linewidth=0.6)
    plain(axes)
    if places.dtype.kind == "M":
        import matplotlib.dates

        locator = matplotlib.dates.AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))


def _number(step: Mapping[str, Any], name: str) -> float:
    return step[name] if name in step else step["values"][int(name[len("values[") : -1])]


def _places(times: Sequence[Any]) -> np.ndarray:
    """Where steps stand: numbers, or dates."""
    if not isinstance(times[0], str):
        return np.asarray(times, float)
    # numpy knows no zones: an offset behind the time is left out, as it is the same for all.
    return np.array([time[:19] for time in times], "datetime64[s]")


def _draw_classes(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    most = min(CLASSES, len(found[0]["probabilities"]))
    figure = new_figure(3.0 * columns + 0.4, rows * (0.6 + 0.24 * most))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    for axes, each in zip(grid, found, strict=False):
        best = sorted(each["probabilities"].items(), key=lambda pair: -pair[1])[:most]
        names, shares = [name for name, _ in best], [share for _, share in best]
        colours = [BLUE if name == each["class"] else GRID for name in names]
        axes.barh(range(len(names)), shares, color=colours, height=0.7)
        for place, share in enumerate(shares):
            axes.annotate(f"{share:.0%}", (share, place), (3, 0), textcoords="offset points", fontsize=7, va="center")
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set(xlim=(0, 1.18), xticks=[])
        axes.invert_yaxis()
        plain(axes)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(Path(str(each["input"])).name, loc="left", fontsize=8, parse_math=False)
    save_figure(figure, path)


def _draw_numbers(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    rows = np.array([each["values"] if "values" in each else [each["value"]] for each in found], float)
    for column in range(rows.shape[1]):
        axes.plot(rows[:, column], ".", label=f"values[{column}]" if rows.shape[1] > 1 else None)
    axes.set(xlabel="input", ylabel="value")
    if rows.shape[1] > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.grid(color=GRID, linewidth=0.6)
    plain(axes)
    save_figure(figure, path)
