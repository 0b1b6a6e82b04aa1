"""Runs one case: first the check against float64, then all sides in turn."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case, Figure, NotHereError, Outputs, Size, Work
from benchmarks.footprint import peak_extra_bytes
from benchmarks.machine import Ceilings, seconds

MEMORY_BAR = 1.05
_MOST_CALLS = 1000
_FEWEST_SAMPLES = 3
# Below this, a difference of resident memory is mostly the allocator's own noise.
_LEAST_COMPARABLE_BYTES = 2**20
# What a compiler says may run over pages.
_LONGEST_MESSAGE = 500


@dataclass(frozen=True)
class Settings:
    """How cases are run.

    Attributes:
        ceilings: What the device can do at most.
        device: Where: ``cpu`` or ``cuda``.
        repeats: Samples of each side, or of each length.
        memory: Whether to measure memory too; cases that are about memory always do.
        sample_seconds: Short calls are repeated within one sample until it takes about this long.
        case_seconds: After this long a case takes no further sample.
        on_step: Told before each step what is about to happen, outside of all timed parts.
    """

    ceilings: Ceilings
    device: str = "cpu"
    repeats: int = 10
    memory: bool = True
    sample_seconds: float = 0.02
    case_seconds: float = math.inf
    on_step: Callable[[str], None] = lambda step: None


@dataclass
class Side:
    """What came out of one side; ``failure`` says why it has no time."""

    errors: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    calls: int = 1
    peak_bytes: int | None = None
    failure: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of a call; None where there is no figure."""
        return None if self.failure or not self.seconds else statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        low, high = np.quantile(self.seconds, [0.1, 0.9]).tolist() if self.seconds else (None, None)
        return {
            "median_s": self.median,
            "low_s": low,
            "high_s": high,
            "samples_s": self.seconds,
            "calls_per_sample": self.calls,
            "peak_extra_bytes": self.peak_bytes,
            "errors": {output: error if math.isfinite(error) else str(error) for output, error in self.errors.items()},
            "failure": self.failure or None,
        }


@dataclass
class Outcome:
    """What came out of one case.

    Attributes:
        case: The case.
        size: The size it ran at.
        sides: By name.
        dtype: Of the outputs; empty where a case has none.
        tolerances: By side.
        flops: See `Work`.
        bytes: See `Work`.
        floor: The least seconds that these can take here.
        times: Our median, by length, where growth is measured.
        peaks: Our peak memory in bytes, by length.
        floors: By length.
        failure: Why there is no figure: what was wrong, or the error that was raised. Empty if all is well.
        skipped: Why it did not run.
    """

    case: Case
    size: Size
    sides: dict[str, Side] = field(default_factory=dict)
    dtype: str = ""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0
    bytes: int = 0
    floor: float | None = None
    times: dict[int, float] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    floors: dict[int, float | None] = field(default_factory=dict)
    failure: str = ""
    skipped: str = ""

    def median(self, side: str) -> float | None:
        """Of a side's times, if it has any to trust."""
        return self.sides[side].median if side in self.sides else None

    def ratio(self, side: str = "ours") -> float | None:
        """The peer's time over that of a side."""
        one, peer = self.median(side), self.median("peer")
        return None if one is None or peer is None else peer / one

    @property
    def value(self) -> float | None:
        """The case's figure. None where there is none to trust."""
        ours, peer = self.median("ours"), self.median("peer")
        if self.failure:
            return None
        if self.case.figure is Figure.GROWTH:
            return slope(self.times)
        if self.case.figure is Figure.MEMORY:
            return self.memory_ratio
        if self.case.figure is Figure.EXTRA_SECONDS:
            return None if ours is None or peer is None else ours - peer
        return self.ratio()

    @property
    def spread(self) -> tuple[float, float] | None:
        """The 10% and 90% quantiles of the figure over neighbouring samples. None where there is only one sample."""
        if self.value is None or "ours" not in self.sides or len(self.sides["ours"].seconds) < 2:
            return None
        ours, peer = np.array(self.sides["ours"].seconds), np.array(self.sides["peer"].seconds)
        neighbours = ours - peer if self.case.figure is Figure.EXTRA_SECONDS else peer / ours
        low, high = np.quantile(neighbours, [0.1, 0.9]).tolist()
        return low, high

    @property
    def memory_ratio(self) -> float | None:
        """The peer's peak extra memory over ours. None where either is unknown or too small to compare."""
        peaks = [self.sides[side].peak_bytes for side in ("ours", "peer") if side in self.sides]
        known = [peak for peak in peaks if peak is not None]
        if self.failure or len(known) < 2 or min(known) < _LEAST_COMPARABLE_BYTES:
            return None
        return known[1] / known[0]

    @property
    def meets_bar(self) -> bool | None:
        """Whether the figure reaches the case's bar. None without a bar or a figure."""
        value, bar = self.value, self.case.bar
        if value is None or bar is None or self.tried:
            return None
        return value <= bar if self.case.figure.less_is_better else value >= bar

    @property
    def meets_floor_bar(self) -> bool | None:
        """The same for the fraction of the floor."""
        fraction, bar = self.fraction_of_floor, self.case.floor_bar
        return None if fraction is None or bar is None or self.tried else fraction >= bar

    @property
    def tried(self) -> bool:
        """Whether this was at the tiny size, whose figures say nothing."""
        return dict(self.size) == dict(self.case.tiny) != dict(self.case.size)

    @property
    def fraction_of_floor(self) -> float | None:
        """The floor over our time, at the greatest length where there are several."""
        longest = max(self.times, default=0)
        floor, ours = (self.floors[longest], self.times[longest]) if longest else (self.floor, self.median("ours"))
        return None if self.failure or floor is None or ours is None else floor / ours

    def record(self) -> dict[str, Any]:
        """All of it as JSON values, which have no NaN and no infinity: such errors are strings."""
        case, spread = self.case, self.spread
        record: dict[str, Any] = {
            "name": case.name,
            "description": case.description,
            "peer": case.peer,
            "figure": case.figure.value,
            "size": dict(self.size),
            "reduced": dict(self.size) != dict(case.size) and not self.tried,
            "dtype": self.dtype,
            "tolerances": dict(self.tolerances),
            "value": self.value,
            "low": spread[0] if spread else None,
            "high": spread[1] if spread else None,
            "bar": case.bar,
            "meets_bar": self.meets_bar,
            "eager_ratio": self.ratio("eager"),
            "memory_ratio": self.memory_ratio,
            "flops": self.flops,
            "bytes": self.bytes,
            "floor_s": self.floor,
            "fraction_of_floor": self.fraction_of_floor,
            "floor_bar": case.floor_bar,
            "meets_floor_bar": self.meets_floor_bar,
            "failure": self.failure or None,
            "skipped": self.skipped or None,
            "sides": {name: side.record() for name, side in self.sides.items()},
        }
        if case.figure is Figure.GROWTH:
            record["growth"] = {
                "median_s": {str(length): value for length, value in self.times.items()},
                "peak_extra_bytes": {str(length): value for length, value in self.peaks.items()},
                "floor_s": {str(length): value for length, value in self.floors.items()},
                "memory_slope": slope(self.peaks),
                "memory_bar": MEMORY_BAR,
            }
        return record


def run(case: Case, settings: Settings, size: Size | None = None) -> Outcome:
    """Run a case. Whatever goes wrong inside it becomes its outcome, so that the cases after it still run.

    A side that is wrong gets no time, so there is no ratio to report. Where a GPU's memory does not suffice, the size
    is halved until it does.
    """
    size = case.size if size is None else size
    while True:
        outcome = Outcome(case, size)
        try:
            (_run_lengths if case.figure is Figure.GROWTH else _run_sides)(outcome, settings)
        except torch.OutOfMemoryError:
            if size.get(case.shrinks, 1) >= 2:
                size = {**size, case.shrinks: size[case.shrinks] // 2}
                continue
            outcome.failure = f"out of memory at {case.shrinks or 'its size'} 1"
        except (ModuleNotFoundError, NotHereError) as error:
            outcome.skipped = str(error)
        except Exception as error:
            outcome.failure = _told(error)
        finally:
            gc.collect()
            if settings.device == "cuda":
                with contextlib.suppress(RuntimeError):  # of a lost device
                    torch.cuda.empty_cache()
        return outcome


def _run_sides(outcome: Outcome, settings: Settings) -> None:
    case, size = outcome.case, outcome.size
    settings.on_step("build")
    work = case.make(size, settings.device)
    outcome.flops, outcome.bytes, outcome.tolerances = work.flops, work.bytes, work.tolerances
    outcome.floor = settings.ceilings.floor(work.flops, work.bytes)
    _check(work, outcome, settings)
    about_memory = case.figure is Figure.MEMORY
    worth_while = about_memory or (settings.memory and case.figure is not Figure.EXTRA_SECONDS)
    if case.device == "cpu" and worth_while and not outcome.failure:
        settings.on_step("memory")
        for name, peak in peak_extra_bytes(case.make, size, list(work.sides)).items():
            outcome.sides[name].peak_bytes = peak
    if not about_memory:
        _time_in_turn(work, outcome.sides, settings)


def _check(work: Work, outcome: Outcome, settings: Settings) -> None:
    """Run every side once and compare it with float64."""
    settings.on_step("float64")
    truth = work.truth()
    dtypes: set[str] = set()
    for name, call in work.sides.items():
        settings.on_step(f"check {name}")
        side = outcome.sides[name] = Side()
        try:
            # Copied, so that a part does not keep all of it.
            found = {output: x.clone() for output, x in work.part(call()).items()}
            dtypes |= {str(x.dtype).removeprefix("torch.") for x in found.values()}
            if name in truth:
                side.errors = relative_errors(found, truth[name])
                side.failure = wrong(side.errors, work.tolerances[name])
            if name == "ours" and outcome.case.device == "cuda" and not side.failure:
                # Nothing in our kernels depends on the order in which programs run.
                side.failure = differing(found, work.part(call()))
        except torch.OutOfMemoryError:
            if name != "eager":
                raise
            side.failure = "out of memory"
        except Exception as error:
            side.failure = _told(error)
    outcome.dtype = ", ".join(sorted(dtypes))
    broken = [f"{name}: {side.failure}" for name, side in outcome.sides.items() if side.failure and name != "eager"]
    outcome.failure = "; ".join(broken)


def _time_in_turn(work: Work, sides: Mapping[str, Side], settings: Settings) -> None:
    """Time every side that is right, one after the other, again and again."""
    right = {name: side for name, side in sides.items() if not side.failure}
    with _without_garbage_collection():
        settings.on_step("warm-up")
        for name, side in right.items():
            once = seconds(work.sides[name], 1, settings.device)
            side.calls = max(1, min(_MOST_CALLS, round(settings.sample_seconds / max(once, 1e-9))))
        end = time.monotonic() + settings.case_seconds
        for done in range(settings.repeats):
            if done >= _FEWEST_SAMPLES and time.monotonic() > end:
                return
            settings.on_step(f"sample {done + 1} of {settings.repeats}")
            for name, side in right.items():
                side.seconds.append(seconds(work.sides[name], side.calls, settings.device))


def _run_lengths(outcome: Outcome, settings: Settings) -> None:
    """Check the shortest length against float64 and, if it is right, measure ours at all lengths in turn."""
    case, sizes = outcome.case, {length: {**outcome.size, "length": length} for length in outcome.case.lengths}
    settings.on_step("check against float64")
    work = case.make(next(iter(sizes.values())))
    outcome.tolerances = {"ours": work.tolerances["ours"]}
    side = outcome.sides["ours"] = Side(errors=relative_errors(work.sides["ours"](), work.truth()["ours"]))
    outcome.failure = side.failure = wrong(side.errors, work.tolerances["ours"])
    if outcome.failure:
        return
    for length, size in sizes.items() if settings.memory else ():
        settings.on_step(f"memory at {length}")
        peak = peak_extra_bytes(case.make, size, ["ours"])["ours"]
        if peak:
            outcome.peaks[length] = peak
    works = {length: case.make(size) for length, size in sizes.items()}
    outcome.floors = {length: settings.ceilings.floor(work.flops, work.bytes) for length, work in works.items()}
    samples: dict[int, list[float]] = {length: [] for length in works}
    with _without_garbage_collection():
        for work in works.values():
            work.sides["ours"]()
        for index in range(settings.repeats):
            settings.on_step(f"sample {index + 1} of {settings.repeats}")
            for length, work in works.items():
                samples[length].append(seconds(work.sides["ours"], max(1, 4096 // length), "cpu"))
    outcome.times = {length: statistics.median(found) for length, found in samples.items()}


def slope(values: Mapping[int, float]) -> float | None:
    """The exponent of a power law, by least squares on logarithmic axes; None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def relative_errors(actual: Outputs, expected: Outputs) -> dict[str, float]:
    """Per output the largest deviation from float64 over the largest entry there.

    Infinite for an output that is missing, unexpected, or of another shape.
    """
    errors = dict.fromkeys(actual.keys() | expected.keys(), math.inf)
    for name in actual.keys() & expected.keys():
        truth = expected[name]
        if actual[name].shape == truth.shape:
            scale = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            errors[name] = ((actual[name].to(torch.float64) - truth).abs().max() / scale).item()
    return dict(sorted(errors.items()))


def wrong(errors: Mapping[str, float], tolerance: float) -> str:
    """What is off by more than is allowed, in one sentence; empty if nothing is."""
    # Written so that NaN is wrong too.
    off = [f"{output} is off by {error:.1e}" for output, error in errors.items() if not error <= tolerance]
    return f"wrong: {', '.join(off)}; allowed is {tolerance:.1e}" if off else ""


def differing(first: Outputs, second: Outputs) -> str:
    """Which outputs of two runs are not the same, bit for bit, in one sentence; empty if all are."""
    names = [name for name, x in first.items() if not torch.equal(x.nan_to_num(), second[name].nan_to_num())]
    return f"not the same when run again: {', '.join(names)}" if names else ""


def device_is_lost(device: str) -> bool:
    """Whether an error has left the device unusable for this process, as a wrong address does."""
    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:_LONGEST_MESSAGE]}"


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # A collection that falls into one side's sample would be charged to that side.
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
