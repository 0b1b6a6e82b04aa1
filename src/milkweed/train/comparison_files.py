"""A comparison of runs in words and in files: CSV and JSON with all digits, Markdown as people read it, figures."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from milkweed._files import atomic_write
from milkweed._suggest import UsageError
from milkweed.plots.comparison import Curve, Panel, save_comparison_figure
from milkweed.train.comparison import Comparison, Contest, Figure, Group
from milkweed.train.finished_run import COSTS, FinishedRun
from milkweed.train.run_folder import write_json

FIGURES = (".png", ".svg", ".pdf")
TABLES = (".csv", ".json", ".md")
# What may stand on the horizontal axis of a figure.
AXES = {
    "parameters": "parameters",
    "flops": "forward FLOPs of a sample",
    "seconds_per_step": "seconds per step",
    "seconds": "seconds of training",
    "peak_memory_bytes": "bytes of memory",
}
EXPLANATION = (
    "± is the sample standard deviation over seeds. FLOPs are those of a forward pass of one sample. Time and memory "
    "are compared only on one machine; memory is the peak of the process, or of a GPU."
)


def save_comparison(comparison: Comparison, path: str | Path, x: str = "parameters") -> None:
    """Write a table (.csv, .json, .md), or a figure (.png, .svg, .pdf) of the metric against x."""
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in (*TABLES, *FIGURES):
        raise UsageError(f"path={str(path)!r} must end in one of {', '.join((*TABLES, *FIGURES))}")
    if suffix in FIGURES:
        save_comparison_figure([panel(contest, x) for contest in comparison.contests], path, AXES[x])
    elif suffix == ".json":
        write_json(path, {"contests": [as_json(each) for each in comparison.contests], "left_out": comparison.left_out})
    elif suffix == ".csv":
        _write_csv(comparison, path)
    else:
        with atomic_write(path) as temporary:
            temporary.write_text(as_markdown(comparison), encoding="utf-8")


def titles(contest: Contest) -> list[str]:
    """The heads of a table for people: options by the end of their names where that says enough."""
    short = [name.rpartition(".")[2] for name in contest.columns]
    options = [
        end if short.count(end) == 1 and end not in {"name", "at"} else name.partition(".")[2] or name
        for end, name in zip(short, contest.columns, strict=True)
    ]
    return ["run", *options, "seeds", f"test {contest.metric}", "parameters", "FLOPs", "step", "epoch", "memory"]


def cells(contest: Contest, group: Group) -> list[str]:
    """The row of a group for people."""
    return [
        group.name,
        *(shown_option(group.options.get(name, "")) for name in contest.columns),
        shown_seeds(group.seeds),
        shown_metric(contest.metric, group.metric),
        _rounded(group.cost("parameters"), lambda value: f"{value:,.0f}"),
        _rounded(group.cost("flops"), lambda value: with_prefix(value, "")),
        _rounded(group.cost("seconds_per_step"), shown_time),
        _rounded(group.cost("seconds_per_epoch"), shown_time),
        _rounded(group.cost("peak_memory_bytes"), lambda value: with_prefix(value, "B")),
    ]


def shown_option(value: Any) -> str:
    """An option as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def shown_seeds(seeds: list[int | None]) -> str:
    """Seeds as people write them: 0–2 for 0, 1, 2."""
    known = sorted(seed for seed in seeds if seed is not None)
    if len(known) > 2 and known == list(range(known[0], known[-1] + 1)):
        return f"{known[0]}–{known[-1]}"
    return ", ".join(map(str, known)) or "-"


def shown_metric(metric: str, figure: Figure) -> str:
    """A metric with its spread."""
    if not math.isfinite(figure.mean):
        return "-"
    percent = metric == "accuracy"
    scale, digits = (100, 2) if percent else (1, 4)
    spread = "" if figure.spread is None else f" ± {scale * figure.spread:.{digits}f}"
    return f"{scale * figure.mean:.{digits}f}{spread}{' %' if percent else ''}"


def with_prefix(value: float, unit: str) -> str:
    """Three digits with a prefix of the metric system."""
    if value == 0:
        return f"0 {unit}".strip()
    value = float(f"{value:.3g}")
    power = max(-3, min(5, math.floor(math.log10(abs(value)) / 3)))
    prefix = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}[power]
    scaled = value / 1000**power
    digits = max(0, 2 - math.floor(math.log10(abs(scaled)) + 1e-9))
    return f"{scaled:.{digits}f} {prefix}{unit}".strip()


def shown_time(seconds: float) -> str:
    """A duration for people."""
    return with_prefix(seconds, "s") if seconds < 600 else f"{seconds / 60:,.0f} min"


def _rounded(figure: Figure, shown: Any) -> str:
    return shown(figure.mean) if math.isfinite(figure.mean) else "-"


def as_markdown(comparison: Comparison) -> str:
    """One table for each contest, and what was left out."""
    parts = []
    for contest in comparison.contests:
        heads = titles(contest)
        first = 1 + len(contest.columns)
        rows = [heads, ["---"] * first + ["---:"] * (len(heads) - first)]
        for group in contest.groups:
            row = [each.replace("|", "\\|") for each in cells(contest, group)]
            if group is contest.best:
                row[first + 1] = f"**{row[first + 1]}**"
            rows.append(row)
        parts.append(f"{contest.data}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    parts.append(EXPLANATION)
    parts += [f"Left out: {each}." for each in comparison.left_out]
    return "\n\n".join(parts) + "\n"


def as_row(contest: Contest, group: Group) -> dict[str, Any]:
    """All numbers of a group."""
    row = {"run": group.name, "data": contest.data, "metric": contest.metric}
    row |= {"test": group.metric.mean, "spread": group.metric.spread, "seeds": group.seeds}
    for name in COSTS:
        mean = group.cost(name).mean
        row[name] = int(mean) if mean.is_integer() else mean
    return row | {"options": group.options, "folders": [str(run.folder.path) for run in group.runs]}


def as_json(contest: Contest) -> dict[str, Any]:
    """A contest with the results of every run."""
    return {
        "data": contest.data,
        "metric": contest.metric,
        "larger_is_better": contest.larger_is_better,
        "differing_options": contest.columns,
        "groups": [
            as_row(contest, group) | {"runs": [{"seed": run.seed, **run.results} for run in group.runs]}
            for group in contest.groups
        ],
    }


def _write_csv(comparison: Comparison, path: Path) -> None:
    rows = []
    for contest in comparison.contests:
        for group in contest.groups:
            row = as_row(contest, group)
            options, folders = row.pop("options"), row.pop("folders")
            row["seeds"] = " ".join(map(str, group.seeds))
            row = {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
            rows.append(row | {name: shown_option(value) for name, value in options.items()} | {"folders": folders})
    heads = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "folders"]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*heads, "folders"])
        writer.writeheader()
        writer.writerows(row | {"folders": " ".join(row["folders"])} for row in rows)


def panel(contest: Contest, x: str) -> Panel:
    """What a figure shows of a contest."""
    curves = [
        Curve(
            name=group.name,
            x=[run.cost(x) for run in group.runs],
            y=[run.value for run in group.runs],
            curves=[_curve(run, f"val_{contest.metric}") for run in group.runs],
        )
        for group in contest.groups
    ]
    return Panel(contest.data, contest.metric, contest.larger_is_better, curves)


def _curve(run: FinishedRun, name: str) -> list[tuple[float, float]]:
    return [(row["epoch"] + 1, row[name]) for row in run.rows if math.isfinite(row.get(name, math.nan))]
