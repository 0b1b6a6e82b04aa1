"""The table of a conversion in a terminal."""

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milkweed.convert import ConversionReport
from milkweed.convert.conversion_report import describe
from milkweed.convert.groups import LayerGroup, by_outcome, by_reason
from milkweed.convert.hub.folder_conversion import FolderConversion


def print_headline(console: Console, done: FolderConversion) -> None:
    """Print what people convert for: figures of the whole model, its speed and size; nothing for a plan."""
    lines = done.headline()
    if not lines:
        return
    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column()
    grid.add_column(overflow="fold")
    for name, value, detail in lines:
        cell = Group(Text(value, "bold"), Text(detail, "dim")) if detail else Group(Text(value, "bold"))
        grid.add_row(Text(name), cell)
    console.print(Text(f"{done.name}, dense -> converted", "bold"))
    if done.end_to_end is not None and done.end_to_end.figures and done.end_to_end.data:
        console.print(Text(f"end to end on {done.end_to_end.data}", "dim"))
    console.print()
    console.print(grid, highlight=False)


def print_plan(console: Console, report: ConversionReport, every: bool) -> None:
    """Print what becomes of the layers, the sum and the warnings."""
    groups = [LayerGroup(line.name, (line,)) for line in report.layers] if every else by_outcome(report.layers)
    calibrated = any(line.output_error is not None for line in report.converted)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold")
    error = "output\nerror" if calibrated else "weight\nerror"
    for heading in ("parameters", error, "speed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        row = _row(group, "output_error" if calibrated else "relative_error")
        table.add_row(_cell(row[0]), *map(escape, row[1:]), style=None if group.lines[0].layer else "dim")
    beside = [LayerGroup(line.name, (line,)) for line in report.kept] if every else by_reason(report.kept)
    for matrices in beside:
        first = matrices.lines[0]
        title = f"{matrices.name}\n{' × '.join(map(str, first.shape))}, stays: {first.reason}"
        table.add_row(_cell(title), _count(matrices.total("parameters")), "", "", style="dim")
    console.print(table, highlight=False)
    console.print(escape(report.summary()), highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]warning: {escape(warning)}[/]", highlight=False)


def _cell(title: str) -> Group:
    """A name, and what is said of it below, indented."""
    name, below = title.split("\n")
    return Group(Text(name), Padding(Text(below), (0, 0, 0, 2)))


def _row(group: LayerGroup, error: str) -> list[str]:
    """A group's name, with its shape and what becomes of it below, and its numbers."""
    first = group.lines[0]
    title = f"{group.name}\n{first.out_features} × {first.in_features}"
    if first.layer is None:
        return [f"{title}, stays: {first.reason}", _count(group.total("parameters_before")), "", ""]
    return [
        f"{title} → {describe(first.layer, first.parts)}",
        f"{_count(group.total('parameters_before'))} → {_count(group.total('parameters_after'))}",
        _range(group, error, "{:.3f}"),
        _range(group, "speedup", "{:.1f}×"),
    ]


def _range(group: LayerGroup, field: str, form: str) -> str:
    found = group.extremes(field)
    return "" if found is None else "–".join(dict.fromkeys(form.format(value) for value in found))


def _count(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)
