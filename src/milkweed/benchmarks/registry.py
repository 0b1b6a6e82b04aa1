"""What a benchmark case is, and the list of all of them."""

from __future__ import annotations

import difflib
import enum
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

Outputs = Mapping[str, Tensor]
Size = Mapping[str, int]


class Figure(enum.StrEnum):
    """Which quantity of the two sides a case compares."""

    FORWARD = "forward"
    TRAINING = "forward + backward"
    MEMORY = "peak extra memory"
    EXTRA_SECONDS = "extra seconds"


@dataclass(frozen=True)
class Pair:
    """The two sides of a case at one size, and the truth that both are held against.

    What is checked is what is timed: a side returns every tensor that it computed, and those are compared.

    Attributes:
        ours: One call of milkweed's side.
        baseline: One call of the usual way, on the same inputs.
        reference: The same outputs in float64. Without outputs there is nothing to compare.
        tolerance: The largest error allowed on either side, relative to the largest entry of the reference.
    """

    ours: Callable[[], Outputs]
    baseline: Callable[[], Outputs]
    reference: Callable[[], Outputs]
    tolerance: float


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Unique, in lower case with hyphens, e.g. ``fft-conv-train``.
        description: One line.
        against: What the baseline is, in one line.
        figure: What is compared. Times and memory are compared as the ratio baseline / ours, ``EXTRA_SECONDS`` as the
            difference ours - baseline.
        build: Makes both sides for a size.
        size: The size that is measured.
        tiny: A size at which both sides take milliseconds, for tests.
        bar: The least ratio, or the most extra seconds, that is to be reached. None where nothing was promised.
        ideal: The ratio that the count of floating point operations alone would give, where that says something.
    """

    name: str
    description: str
    against: str
    figure: Figure
    build: Callable[[Size], Pair]
    size: Size
    tiny: Size
    bar: float | None = None
    ideal: float | None = None


class UnknownCaseError(LookupError):
    """No case has a name like the one asked for."""


class Named(Protocol):
    """What can be picked by name."""

    @property
    def name(self) -> str:
        """The name."""


C = TypeVar("C", bound=Named)

_registered: dict[str, Case] = {}


def register(case: Case) -> Case:
    """Add a case to the list.

    Args:
        case: The case.

    Returns:
        The same case.

    Raises:
        ValueError: When another case has this name.
    """
    if case.name in _registered:
        raise ValueError(f"a benchmark case named {case.name!r} is already registered; choose another name")
    _registered[case.name] = case
    return case


def all_cases() -> list[Case]:
    """List every case, after importing all files of ``cases/``.

    Returns:
        The cases in the order of their files and of their registration.
    """
    # Imported here because the files of cases/ import this one.
    from milkweed.benchmarks import cases

    for module in pkgutil.iter_modules(cases.__path__, f"{cases.__name__}."):
        importlib.import_module(module.name)
    return list(_registered.values())


def select(patterns: Iterable[str], cases: Iterable[C]) -> list[C]:
    """Pick cases by name.

    Args:
        patterns: Each one a full name, a shell pattern (``s4d-*``), or any part of a name. No pattern picks all.
        cases: What to pick from.

    Returns:
        The cases that match at least one pattern, in the order of ``cases``.

    Raises:
        UnknownCaseError: When a pattern matches nothing; the message holds the nearest names.
    """
    cases = list(cases)
    names = [case.name for case in cases]
    patterns = list(patterns)
    picked: set[str] = set()
    for pattern in patterns:
        # A full name means that case alone, even where other names begin with it.
        matches = {pattern} if pattern in names else set(fnmatch.filter(names, pattern))
        matches = matches or {name for name in names if pattern in name}
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f"the nearest names are {', '.join(near)}" if near else "`milkweed bench --list` shows all names"
            raise UnknownCaseError(f"no benchmark case matches {pattern!r}; {hint}")
        picked |= matches
    return [case for case in cases if not patterns or case.name in picked]
