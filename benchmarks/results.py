"""Outcomes as JSON for later and as tables for people."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Figure
from milkweed._files import atomic_write

FORMAT_VERSION = 2
_FOLDER = Path(__file__).parent / "results"
_WIDTH_WITHOUT_TERMINAL = 200
_STYLES = {"met": "green", "missed": "red", "failed": "red"}

_COMPARED = ["case", "ours", "eager", "peer", "ratio", "10-90%", "of eager", "bar", "of floor", "memory", "error"]
_COMPARED_CAPTION = (
    "Times are medians. The ratio is peer / ours, with its 10-90% range over neighbouring samples. The floor is the "
    "least time for the operations and bytes of a case at this machine's best product and copy; data that stay in "
    "caches may beat it. Memory (peak beyond the inputs, MiB) and error (largest deviation from float64): ours / peer."
)
_GROWTH = ["case", "lengths", "time", "time grows like", "bar", "of floor", "memory, MiB", "memory grows like", "bar"]
_GROWTH_CAPTION = (
    "Exponents of the length, fitted to medians over all lengths; the floor is that of the greatest. Memory is the "
    "peak beyond the inputs, gradients and graph included."
)

Record = Mapping[str, Any]


def default_path(machine: str) -> Path:
    """Where results of a machine go."""
    return _FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"


def write(path: Path | None, document: Mapping[str, object]) -> None:
    """Write a document, if there is a path, so that the file is either complete or untouched."""
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def kept(path: Path, document: Record) -> list[Record]:
    """The cases of a file that an earlier run has begun, on the same machine and in the same way."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there = found["format"], found["environment"]["machine"], found["interpreted"]
        records = list(found["cases"])
        if there[0] == FORMAT_VERSION:
            _tables(records)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no results of this command; give --json another file, or no --resume"
        ) from error
    here = document["format"], document["environment"]["machine"], document["interpreted"]
    if there != here:
        raise ValueError(
            f"{path} was measured in another way (format, machine, interpreted: {there}; now {here}); "
            "give --json another file"
        )
    return records


def show_list(cases: Iterable[Case]) -> None:
    """List cases without running them."""
    rows = [
        [case.name, case.device, case.description, case.peer, _size(case.size), case.figure.value, *_bars(case)]
        for case in cases
    ]
    _print(["case", "device", "what", "against", "size", "figure", "bar", "of floor"], rows, "")


def show(records: Sequence[Record]) -> None:
    """Print what came out, and why some cases have no figure."""
    for heading, rows, caption in _tables(records):
        if rows:
            _print(heading, rows, caption)
    for record in records:
        if record["failure"] or record["skipped"]:
            sys.stdout.write(f"{record['name']}: {record['failure'] or record['skipped']}\n")
        if record["reduced"]:
            sys.stdout.write(f"{record['name']}: measured at {_size(record['size'])}, which fits in memory\n")


def summary(record: Record) -> str:
    """One case in a few words."""
    floor = _percent(record["fraction_of_floor"])
    return _value(record) + ("" if floor == "-" else f", {floor} of the floor")


def _tables(records: Sequence[Record]) -> list[tuple[list[str], list[list[str]], str]]:
    growing = [_growth_row(record) for record in records if record["figure"] == Figure.GROWTH]
    compared = [_compared_row(record) for record in records if record["figure"] != Figure.GROWTH]
    return [(_COMPARED, compared, _COMPARED_CAPTION), (_GROWTH, growing, _GROWTH_CAPTION)]


def _compared_row(record: Record) -> list[str]:
    sides = record["sides"]
    spread = "-" if record["low"] is None else f"{record['low']:.2f}..{record['high']:.2f}"
    eager = record["eager_ratio"]
    return [
        record["name"],
        *(_time(sides.get(side)) for side in ("ours", "eager", "peer")),
        _value(record),
        spread,
        "-" if eager is None else f"{eager:.2f}x",
        _judged(_bar(record["figure"], record["bar"]), record["meets_bar"]),
        _floor(record),
        _both(sides, _memory),
        _both(sides, _error),
    ]


def _growth_row(record: Record) -> list[str]:
    growth = record["growth"]
    times, peaks = list(growth["median_s"].items()), list(growth["peak_extra_bytes"].values())
    memory, memory_bar = growth["memory_slope"], growth["memory_bar"]
    return [
        record["name"],
        f"{int(times[0][0]):,} .. {int(times[-1][0]):,}" if times else "-",
        f"{times[0][1] * 1e3:.3g} .. {times[-1][1] * 1e3:.3g} ms" if times else "-",
        _value(record),
        _judged(_bar(record["figure"], record["bar"]), record["meets_bar"]),
        _floor(record),
        f"{peaks[0] / 2**20:.1f} .. {peaks[-1] / 2**20:.1f}" if peaks else "-",
        "-" if memory is None else f"L^{memory:.2f}",
        _judged(f"<= {memory_bar}", None if memory is None else memory <= memory_bar),
    ]


def _value(record: Record) -> str:
    if record["failure"] or record["skipped"]:
        return "failed" if record["failure"] else "skipped"
    value = record["value"]
    if value is None:
        return "-"
    if record["figure"] == Figure.EXTRA_SECONDS:
        return f"{value:+.2f} s"
    return f"L^{value:.2f}" if record["figure"] == Figure.GROWTH else f"{value:.2f}x"


def _bar(figure: str, bar: float | None) -> str:
    if bar is None:
        return "-"
    if figure == Figure.GROWTH:
        return f"<= {bar:g}"
    return f"<= {bar:g} s" if figure == Figure.EXTRA_SECONDS else f">= {bar:.3g}x"


def _bars(case: Case) -> tuple[str, str]:
    return _bar(case.figure, case.bar), "-" if case.floor_bar is None else f">= {case.floor_bar:.0%}"


def _judged(bar: str, met: bool | None) -> str:
    return bar if met is None else f"{bar} {'met' if met else 'missed'}"


def _floor(record: Record) -> str:
    reached, bar = _percent(record["fraction_of_floor"]), record["floor_bar"]
    return reached if bar is None else f"{reached} {_judged(f'>= {bar:.0%}', record['meets_floor_bar'])}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.0%}"


def _time(side: Record | None) -> str:
    if side is None or (side["median_s"] is None and not side["failure"]):
        return "-"
    if side["failure"]:
        return "failed"
    median = side["median_s"]
    return f"{median:.2f} s" if median >= 1 else f"{median * 1e3:.3g} ms"


def _both(sides: Record, part: Any) -> str:
    cells = [part(sides[side]) for side in ("ours", "peer") if side in sides]
    return "-" if set(cells) <= {"-"} else " / ".join(cells)


def _memory(side: Record) -> str:
    return "-" if side["peak_extra_bytes"] is None else f"{side['peak_extra_bytes'] / 2**20:.0f}"


def _error(side: Record) -> str:
    errors = [float(error) for error in side["errors"].values()]
    worst = max(errors, key=lambda error: (math.isnan(error), error), default=None)
    return "-" if worst is None else f"{worst:.0e}"


def _size(size: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in size.items())


def _print(heading: list[str], rows: list[list[str]], caption: str) -> None:
    # A column in which no case has anything says nothing.
    used = [i for i in range(len(heading)) if any(row[i] != "-" for row in rows)]
    heading, rows = [heading[i] for i in used], [[row[i] for i in used] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in [heading, *rows]]
        sys.stdout.write("\n".join([*lines, caption]) + "\n")
        return
    table = Table(box=None, pad_edge=False, caption=caption or None, caption_justify="left")
    for index, name in enumerate(heading):
        table.add_column(name, overflow="fold", no_wrap=index == 0)
    for row in rows:
        cells = [Text(cell) for cell in row]
        for cell in cells:
            for word, style in _STYLES.items():
                cell.highlight_words([word], style)
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    console.print(table)
