"""Tables of results."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkweed.train.run_folder import RunFolder


def plain_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of texts; all columns but the first are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_results(runs: list[tuple[RunFolder, dict[str, Any]]]) -> None:
    """Print finished runs, one row each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("recipe", no_wrap=True)
    metric = runs[0][1].get("metric", "accuracy")  # older runs do not say
    for title in (f"test\n{metric}", "parameters", "time", "seconds\nper epoch"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("results in", style="bold", overflow="fold")
    for folder, results in runs:
        table.add_row(
            escape(str(folder.read_environment().get("recipe", ""))),
            shown(results["test"][metric], ".2%" if metric == "accuracy" else ".4f"),
            f"{results['parameters']:,}",
            duration(results["seconds"]),
            f"{results['seconds_per_epoch']:.2f}",
            escape(str(folder.path)),
        )
    Console().print(table)


def shown(value: float | None, form: str) -> str:
    """Write a metric for people."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def duration(seconds: float) -> str:
    """Write a duration for people."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}m {whole % 60:02d}s"
