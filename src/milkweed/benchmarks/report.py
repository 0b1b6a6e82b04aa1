"""Measurements as a table for people and as JSON for later."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milkweed._files import atomic_write
from milkweed.benchmarks.growth import Growth, GrowthMeasurement, growth_record
from milkweed.benchmarks.registry import Case, Figure, Size
from milkweed.benchmarks.run import Measurement, SideMeasurement

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1


def case_table(cases: Iterable[Case | Growth]) -> Table:
    """List cases without running them.

    Args:
        cases: The cases.

    Returns:
        A table for rich's console.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("case", "what", "against", "size", "figure", "bar"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "case")
    for case in cases:
        if isinstance(case, Growth):
            table.add_row(case.name, case.description, "itself at other lengths", _size(case.size), "growth", "")
            continue
        table.add_row(case.name, case.description, case.against, _size(case.size), case.figure.value, _bar(case))
    return table


def result_table(measurements: Iterable[Measurement]) -> Table:
    """Show what came out, one row per case. A case that failed its check has no figure.

    Args:
        measurements: The measurements.

    Returns:
        A table for rich's console.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption_justify="left")
    table.caption = (
        "Times are medians. The ratio is baseline / ours, with its 10-90% range over neighbouring samples; FLOPs is "
        "its share of the ratio of operation counts. Memory (peak beyond the inputs, MiB) and error (largest "
        "deviation from float64) are ours / baseline."
    )
    table.add_column("case", no_wrap=True)
    for heading in ("ours", "baseline", "ratio", "10-90%", "FLOPs", "bar", "memory", "error"):
        table.add_column(heading, justify="right", no_wrap=heading in {"ours", "baseline", "ratio"})
    for result in measurements:
        table.add_row(
            result.case.name,
            _time(result.ours),
            _time(result.baseline),
            _value(result),
            _spread(result),
            "-" if result.fraction_of_ideal is None else f"{result.fraction_of_ideal:.0%}",
            _verdict(result),
            _memory(result),
            _error(result),
        )
    return table


def document(
    measurements: Iterable[Measurement],
    growths: Iterable[GrowthMeasurement],
    environment: dict[str, object],
    settings: dict[str, object],
) -> dict[str, object]:
    """Put everything that was measured into plain JSON values.

    Args:
        measurements: The measurements.
        growths: Those over several lengths.
        environment: From [`describe_environment`][milkweed.benchmarks.environment.describe_environment].
        settings: How the measurements were made.

    Returns:
        A dictionary without NaN or infinity, which JSON does not have: such errors appear as strings.
    """
    return {
        "format": FORMAT_VERSION,
        "environment": environment,
        "settings": settings,
        "cases": [_record(result) for result in measurements],
        "growth": [growth_record(result) for result in growths],
    }


def write_document(path: Path, content: dict[str, object]) -> None:
    """Write a document so that the file is either complete or untouched.

    Args:
        path: The JSON file.
        content: From [`document`][milkweed.benchmarks.report.document].
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _record(result: Measurement) -> dict[str, object]:
    case = result.case
    spread = result.spread
    figures = {
        "value": result.value,
        "unit": "s" if case.figure is Figure.EXTRA_SECONDS else "baseline / ours",
        "low": spread[0] if spread else None,
        "high": spread[1] if spread else None,
        "memory_ratio": result.memory_ratio,
        "fraction_of_ideal": result.fraction_of_ideal,
        "meets_bar": result.meets_bar,
    }
    return {
        "name": case.name,
        "description": case.description,
        "against": case.against,
        "figure": case.figure.value,
        "bar": case.bar,
        "ideal": case.ideal,
        "size": dict(result.size),
        "dtype": result.dtype,
        "tolerance": _json_number(result.tolerance),
        "failure": result.failure or None,
        **figures,
        "ours": _side_record(result.ours),
        "baseline": _side_record(result.baseline),
    }


def _side_record(side: SideMeasurement) -> dict[str, object]:
    low, high = np.quantile(side.seconds, [0.1, 0.9]).tolist() if side.seconds else (None, None)
    return {
        "median_s": statistics.median(side.seconds) if side.seconds else None,
        "low_s": low,
        "high_s": high,
        "samples_s": side.seconds,
        "calls_per_sample": side.calls_per_sample,
        "peak_extra_bytes": side.peak_extra_bytes,
        "errors": {name: _json_number(error) for name, error in side.errors.items()},
    }


def _size(size: Size) -> str:
    return " ".join(f"{name}={value}" for name, value in size.items())


def _json_number(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _time(side: SideMeasurement) -> str:
    if not side.seconds:
        return "-"
    seconds = statistics.median(side.seconds)
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _value(result: Measurement) -> str:
    if result.failure:
        return "[red]failed[/red]"
    if result.value is None:
        return "-"
    if result.case.figure is Figure.EXTRA_SECONDS:
        return f"{result.value:+.2f} s"
    colour = "green" if result.value >= 1 else "yellow"
    return f"[{colour}]{result.value:.2f}x[/{colour}]"


def _spread(result: Measurement) -> str:
    return "-" if result.spread is None else f"{result.spread[0]:.2f}..{result.spread[1]:.2f}"


def _bar(case: Case) -> str:
    if case.bar is None:
        return "-"
    return f"< {case.bar:g} s" if case.figure is Figure.EXTRA_SECONDS else f">= {case.bar:g}x"


def _verdict(result: Measurement) -> str:
    if result.meets_bar is None:
        return _bar(result.case)
    return f"{_bar(result.case)} " + ("[green]met[/green]" if result.meets_bar else "[red]missed[/red]")


def _memory(result: Measurement) -> str:
    sides = (result.ours.peak_extra_bytes, result.baseline.peak_extra_bytes)
    if result.failure or None in sides:
        return "-"
    return " / ".join(f"{count / 2**20:.0f}" for count in sides if count is not None)


def _error(result: Measurement) -> str:
    worst = (result.ours.worst_error, result.baseline.worst_error)
    return " / ".join("-" if error is None else f"{error:.0e}" for error in worst)
