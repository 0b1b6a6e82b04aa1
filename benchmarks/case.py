"""What a benchmark case is, and the list of all of them."""

from __future__ import annotations

import difflib
import enum
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Outputs = Mapping[str, Tensor]
Size = Mapping[str, int]


class Figure(enum.StrEnum):
    """What a case compares: the ratio peer / ours, except where another meaning is given."""

    FORWARD = "forward"
    TRAINING = "forward + backward"
    MEMORY = "peak extra memory"
    EXTRA_SECONDS = "extra seconds"  # ours - peer
    GROWTH = "growth"  # the exponent of the length in our time

    @property
    def less_is_better(self) -> bool:
        """Whether a bar is an upper one."""
        return self in {Figure.EXTRA_SECONDS, Figure.GROWTH}


@dataclass(frozen=True)
class Work:
    """What a case does at one size. What is checked is what is timed: a side returns every tensor that it computed.

    Attributes:
        sides: ``ours``, ``peer`` (the usual way, on the same inputs) and, on a GPU, ``eager``, milkweed in plain
            PyTorch.
        truth: By side, its outputs in float64. A side that is not in it has nothing to compare.
        tolerances: By side, the largest error allowed, relative to the largest entry of each true output.
        flops: The fewest operations known to suffice, in those of the machine's ceiling: float32 on CPUs, bfloat16 on
            GPUs.
        bytes: What has to move between memory and processor at least.
        part: Takes from a side's outputs what ``truth`` holds.
    """

    sides: Mapping[str, Callable[[], Outputs]]
    truth: Callable[[], Mapping[str, Outputs]]
    tolerances: Mapping[str, float]
    flops: float = 0
    bytes: int = 0
    part: Callable[[Outputs], Outputs] = dict


def compare(
    ours: Callable[[], Outputs],
    peer: Callable[[], Outputs],
    truth: Callable[[], Outputs],
    tolerance: float,
    *,
    flops: float = 0,
    bytes: int = 0,
) -> Work:
    """Two sides that must give the same."""
    sides = {"ours": ours, "peer": peer}
    return Work(sides, lambda: dict.fromkeys(sides, truth()), dict.fromkeys(sides, tolerance), flops, bytes)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Unique, in lower case with hyphens, e.g. ``fft-conv-train``.
        description: One line.
        peer: What it is compared with, in one line.
        figure: What is compared.
        build: Makes the work for a size, on the device and with the random state of ``make``. A function of a module,
            as a fresh process calls it again to measure memory.
        size: What is measured.
        tiny: Where all sides take milliseconds, for tests and the interpreter.
        bar: The figure that is to be reached. None where nothing was promised.
        floor_bar: The fraction of the floor that is to be reached.
        device: ``cpu`` or ``cuda``.
        shrinks: The entry of the size that is halved where memory does not suffice.
        lengths: Where growth is measured; its sizes have no ``length`` of their own.
    """

    name: str
    description: str
    peer: str
    figure: Figure
    build: Callable[[Size], Work]
    size: Size
    tiny: Size
    bar: float | None = None
    floor_bar: float | None = None
    device: str = "cpu"
    shrinks: str = ""
    lengths: Sequence[int] = ()

    def make(self, size: Size, device: str = "cpu") -> Work:
        """Make the work: the same numbers every time, in every process."""
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            return self.build(size)


class NotHereError(Exception):
    """What a case needs is not on this machine."""


class UnknownCaseError(LookupError):
    """No case has a name like the one asked for."""


_registered: dict[str, Case] = {}


def register(case: Case) -> None:
    """Add a case to the list."""
    if case.name in _registered:
        raise ValueError(f"a benchmark case named {case.name!r} is already registered; choose another name")
    _registered[case.name] = case


def all_cases() -> list[Case]:
    """Every case of ``cases/``, in the order of their files and of their registration there."""
    from benchmarks import cases  # whose files import this one

    for module in pkgutil.iter_modules(cases.__path__, f"{cases.__name__}."):
        importlib.import_module(module.name)
    return list(_registered.values())


def select(patterns: Iterable[str], cases: Sequence[Case]) -> list[Case]:
    """The cases that match a name, a shell pattern (``s4d-*``) or any part of a name; all of them without a pattern."""
    names = [case.name for case in cases]
    picked: set[str] = set()
    for pattern in patterns:
        # A full name means that case alone, even where other names begin with it.
        matches = {pattern} if pattern in names else set(fnmatch.filter(names, pattern))
        matches = matches or {name for name in names if pattern in name}
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f"the nearest names are {', '.join(near)}" if near else "--list shows all names"
            raise UnknownCaseError(f"no benchmark case matches {pattern!r}; {hint}")
        picked |= matches
    return [case for case in cases if not patterns or case.name in picked]


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, gradient: bool = False) -> Tensor:
    """Normal numbers on the device of the case."""
    return (torch.randn(shape) * scale).to(dtype).requires_grad_(gradient)


def place(make: Callable[[], nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
    """A module made on the CPU, where initial values are computed, and moved to the device of the case."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        module = make()
    return module.to(device, dtype)
