"""Runs beside each other: those that differ in their seed only are one row, options that differ are columns."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milkweed.train.finished_run import FinishedRun, read_run


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation over seeds; the spread is None of one seed, both are NaN if any value is."""

    mean: float
    spread: float | None
    count: int

    @classmethod
    def over(cls, values: Sequence[float]) -> "Figure":
        """Sum up the values of all seeds."""
        if not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan if len(values) > 1 else None, len(values))
        spread = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), spread, len(values))


@dataclass(frozen=True)
class Group:
    """Runs with equal options, each of another seed."""

    runs: list[FinishedRun]
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # those that differ between groups, by natural name

    @property
    def seeds(self) -> list[int | None]:
        """The seeds, in order."""
        return [run.seed for run in self.runs]

    @property
    def metric(self) -> Figure:
        """The test metric over all seeds."""
        return Figure.over([run.value for run in self.runs])

    def cost(self, name: str) -> Figure:
        """One of `COSTS` over all seeds."""
        return Figure.over([run.cost(name) for run in self.runs])


@dataclass(frozen=True)
class Contest:
    """Runs that were judged alike: by one metric, on data of one class."""

    data: str
    metric: str
    larger_is_better: bool | None
    columns: list[str]  # natural names of the options that differ
    groups: list[Group]

    @property
    def best(self) -> Group | None:
        """The group with the best mean; None if there is only one, or nobody knows which way is better."""
        found = [group for group in self.groups if math.isfinite(group.metric.mean)]
        if len(self.groups) < 2 or not found or self.larger_is_better is None:
            return None
        return (max if self.larger_is_better else min)(found, key=lambda group: group.metric.mean)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: one contest for each metric and kind of data, and why folders were left out."""

    contests: list[Contest]
    left_out: list[str]


def compare(paths: Iterable[str | Path]) -> Comparison:
    """Compare finished runs: folders of runs, or folders that hold such. Others are left out and named."""
    runs, left_out = [], []
    for path in expand(paths):
        try:
            runs.append(read_run(path))
        except (ValueError, OSError) as error:
            left_out.append(str(error))
    together: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        together.setdefault((run.options["data"], run.metric), []).append(run)
    return Comparison([_contest(*judged, each) for judged, each in together.items()], left_out)


def expand(paths: Iterable[str | Path]) -> list[Path]:
    """Put the runs in a folder in its place; each run counts once."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [] if (path / "config.yaml").exists() or not path.is_dir() else sorted(path.iterdir(), key=_in_order)
        runs = [each for each in inside if (each / "config.yaml").is_file()]
        for each in runs or [path]:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def _in_order(path: Path) -> list[Any]:
    """Names as people order them: a run 10 comes after a run 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def _contest(data: str, metric: str, runs: list[FinishedRun]) -> Contest:
    groups = _grouped(runs)
    columns = differing([group[0].options for group in groups])
    options = [{name: group[0].options[name] for name in columns if name in group[0].options} for group in groups]
    names = _distinct([common_name([run.folder.name for run in group]) for group in groups], groups)
    (known,) = {run.larger_is_better for run in runs if run.larger_is_better is not None} or {None}
    return Contest(data, metric, known, columns, [Group(*each) for each in zip(groups, names, options, strict=True)])


def _grouped(runs: list[FinishedRun]) -> list[list[FinishedRun]]:
    """Put runs of equal options together; one that repeats a seed, on another machine perhaps, begins a new group."""
    groups: dict[tuple[str, int], list[FinishedRun]] = {}
    for run in runs:
        options = json.dumps(run.options, sort_keys=True, default=str)
        number = 0
        while any(run.seed == other.seed for other in groups.get((options, number), [])):
            number += 1
        groups.setdefault((options, number), []).append(run)
    return list(groups.values())


def differing(options: Sequence[dict[str, Any]]) -> list[str]:
    """Names whose values differ between those that have them; what only some classes have is no difference itself."""
    names = dict.fromkeys(name for each in options for name in each)
    first = ("data", "model", "task")
    found = [name for name in names if any(_other(each[name], known) for known, each in _pairs(options, name))]
    return sorted(found, key=lambda name: name not in first)


def _pairs(options: Sequence[dict[str, Any]], name: str) -> list[tuple[Any, dict[str, Any]]]:
    having = [each for each in options if name in each]
    return [(having[0][name], each) for each in having[1:]]


def _other(one: Any, two: Any) -> bool:
    return one != two or isinstance(one, bool) != isinstance(two, bool)


def common_name(names: Sequence[str]) -> str:
    """What the names of runs begin with, without what is left of a seed: `lin` of `lin,seed=0` and `lin,seed=1`."""
    if len(names) == 1:
        return names[0]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in same)
    if prefix not in names:
        prefix = re.sub(r"[^-_.,=\s]*$", "", prefix) or prefix
    return re.sub(r"[-_.,\s]*(\bseed[=_-]?|_seed[=_-]?)?[-_.,=\s]*$", "", prefix) or names[0]


def _distinct(names: list[str], groups: list[list[FinishedRun]]) -> list[str]:
    """Names of groups, by paths where names alone are not enough."""
    return [
        name if names.count(name) == 1 else str(group[0].folder.path) for name, group in zip(names, groups, strict=True)
    ]
