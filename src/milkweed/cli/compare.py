"""`milkweed compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from milkweed._suggest import UsageError

if TYPE_CHECKING:
    from milkweed.train.comparison import Comparison, Contest

EXAMPLE = """\
  milkweed compare runs/digits runs/digits-monarch
  milkweed compare runs --out table.md --out figure.pdf
  milkweed compare runs/sweep --x seconds_per_step --out figure.png"""


def compare(
    run: list[Path],
    *,
    x: Literal["parameters", "flops", "seconds_per_step", "seconds", "peak_memory_bytes"] = "parameters",
    out: list[Path] | None = None,
) -> None:
    """Put finished runs beside each other. Runs that differ in their seed only are one row: mean ± standard deviation.

    Args:
        run: folders of runs, or folders that hold runs, e.g. runs
        x: what the figure shows the test metric against
        out (FILE): write a table (.csv, .json, .md) or a figure (.png, .svg, .pdf); may be repeated
    """
    from milkweed.cli.plot.common import writing
    from milkweed.train.comparison import compare as compare_runs
    from milkweed.train.comparison_files import save_comparison

    check_files(out or [])
    missing = [path for path in run if not path.is_dir()]
    for path in missing:
        meant = Path("runs") / path
        raise UsageError(f"{path} is no folder of a run{f'; did you mean {meant}?' if meant.is_dir() else ''}")
    found = compare_runs(run)
    if not found.contests:
        raise UsageError(f"there is no finished run to compare: {'; '.join(found.left_out)}")
    print_comparison(found)
    for path in out or []:
        with writing(path):
            save_comparison(found, path, x)


def check_files(paths: list[Path]) -> None:
    """Refuse files that cannot be written, before runs are read."""
    from milkweed.cli.plot.common import check_out
    from milkweed.train.comparison_files import FIGURES, TABLES

    for path in paths:
        if path.suffix.lower() not in (*TABLES, *FIGURES):
            raise UsageError(f"--out {path} must end in one of {', '.join((*TABLES, *FIGURES))}; try --out {path}.md")
        check_out(path, "table.md", path.suffix.lower())
        if path.suffix.lower() in FIGURES:
            from milkweed.plots.figure import new_figure

            new_figure(1, 1)  # says what to install


def print_comparison(comparison: "Comparison") -> None:
    """Print the tables, and what was left out."""
    from rich.console import Console

    from milkweed.train.comparison_files import EXPLANATION

    console = Console()
    for contest in comparison.contests:
        console.print(f"\n{contest.data}: test {contest.metric}", style="italic", highlight=False, markup=False)
        for columns in columns_that_fit(contest, console.width):
            console.print(as_table(contest, columns))
    console.print(EXPLANATION, style="dim", highlight=False)
    for reason in comparison.left_out:
        console.print(f"left out: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def columns_that_fit(contest: "Contest", width: int) -> list[list[int]]:
    """Columns by number, in as many tables as it takes; the first column, the name, stands in each."""
    from milkweed.train.comparison_files import cells, titles

    rows = [cells(contest, group) for group in contest.groups]
    widths = [
        max(*(len(word) for word in head.split(" ", 1)), *(len(row[place]) for row in rows)) + 2
        for place, head in enumerate(titles(contest))
    ]
    widths[0] = min(widths[0], width // 2)
    tables: list[list[int]] = [[0]]
    for place in range(1, len(widths)):
        if len(tables[-1]) > 1 and sum(widths[each] for each in (*tables[-1], place)) > width:
            tables.append([0])
        tables[-1].append(place)
    return tables


def as_table(contest: "Contest", columns: list[int]):
    """Some columns of a contest as a table of rich's."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from milkweed.train.comparison_files import cells, titles

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads, numbers = titles(contest), 1 + len(contest.columns)
    for place in columns:
        justify = "left" if place < numbers else "right"
        table.add_column(heads[place].replace(" ", "\n", 1), justify=justify, overflow="fold", no_wrap=place > 0)
    for group in contest.groups:
        row = [escape(each) for each in cells(contest, group)]
        if group is contest.best:
            row[numbers + 1] = f"[bold]{row[numbers + 1]}[/]"
        table.add_row(*(row[place] for place in columns))
    return table
