"""Runs one case: first the check, then both sides in turn."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from milkweed.benchmarks.memory import peak_extra_bytes
from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size

# Below this, a difference of resident memory is mostly the allocator's own noise.
_LEAST_COMPARABLE_BYTES = 2**20


@dataclass
class SideMeasurement:
    """One side's figures.

    Attributes:
        errors: Per output, the largest deviation from float64 relative to the reference's largest entry.
        seconds: One time per sample, each for a single call.
        calls_per_sample: How many calls were averaged in each sample.
        peak_extra_bytes: See [`peak_extra_bytes`][milkweed.benchmarks.memory.peak_extra_bytes].
    """

    errors: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    calls_per_sample: int = 1
    peak_extra_bytes: int | None = None

    @property
    def worst_error(self) -> float | None:
        """The largest error, NaN counting as the worst. None where nothing was compared."""
        return max(self.errors.values(), key=lambda error: (math.isnan(error), error), default=None)


@dataclass
class Measurement:
    """What came out of one case.

    Attributes:
        case: The case.
        size: The size it ran at.
        dtype: The dtype of the measured outputs, empty where a case has none.
        tolerance: The largest error allowed.
        ours: milkweed's side.
        baseline: The other side.
        failure: Why there is no figure: the check that failed or the error that was raised. Empty if all is well.
    """

    case: Case
    size: Size
    dtype: str = ""
    tolerance: float = math.nan
    ours: SideMeasurement = field(default_factory=SideMeasurement)
    baseline: SideMeasurement = field(default_factory=SideMeasurement)
    failure: str = ""

    @property
    def value(self) -> float | None:
        """The case's figure: a ratio baseline / ours, or the extra seconds. None where there is none to trust."""
        if self.failure:
            return None
        if self.case.figure is Figure.MEMORY:
            return self.memory_ratio
        if not self.ours.seconds or not self.baseline.seconds:
            return None
        ours, baseline = statistics.median(self.ours.seconds), statistics.median(self.baseline.seconds)
        return ours - baseline if self.case.figure is Figure.EXTRA_SECONDS else baseline / ours

    @property
    def spread(self) -> tuple[float, float] | None:
        """The 10% and 90% quantiles of the figure over neighbouring samples. None where there is only one sample."""
        if self.failure or self.case.figure is Figure.MEMORY or len(self.ours.seconds) < 2:
            return None
        ours, baseline = np.array(self.ours.seconds), np.array(self.baseline.seconds)
        pairwise = ours - baseline if self.case.figure is Figure.EXTRA_SECONDS else baseline / ours
        low, high = np.quantile(pairwise, [0.1, 0.9])
        return float(low), float(high)

    @property
    def memory_ratio(self) -> float | None:
        """The baseline's peak extra memory over ours. None where either is unknown or too small to compare."""
        ours, baseline = self.ours.peak_extra_bytes, self.baseline.peak_extra_bytes
        if self.failure or ours is None or baseline is None or min(ours, baseline) < _LEAST_COMPARABLE_BYTES:
            return None
        return baseline / ours

    @property
    def meets_bar(self) -> bool | None:
        """Whether the figure reaches the case's bar. None without a bar or a figure."""
        if self.value is None or self.case.bar is None:
            return None
        return self.value < self.case.bar if self.case.figure is Figure.EXTRA_SECONDS else self.value >= self.case.bar

    @property
    def fraction_of_ideal(self) -> float | None:
        """The figure as a fraction of what the count of operations alone would give."""
        return None if self.value is None or self.case.ideal is None else self.value / self.case.ideal


def measure(
    case: Case,
    *,
    repeats: int = 10,
    size: Size | None = None,
    memory: bool = True,
    sample_seconds: float = 0.02,
    on_step: Callable[[str], None] | None = None,
) -> Measurement:
    """Check both sides of a case against float64 and, if both pass, measures them in turn (A B A B ...).

    A side that is wrong gets no time, so there is no speed-up to report. An error inside a case is recorded in the same
    way; the cases after it still run.

    Args:
        case: The case.
        repeats: How many samples to take of each side.
        size: The size to run at; the case's own by default.
        memory: Whether to measure the peak memory of calls too. Cases that compare memory always do.
        sample_seconds: Short calls are repeated within one sample until it takes about this long.
        on_step: Told before each step what is about to happen, outside of all timed parts.

    Returns:
        The measurement, with ``failure`` set where there is no figure.
    """
    result = Measurement(case, case.size if size is None else size)
    tell = on_step or (lambda step: None)
    try:
        tell("build")
        pair = case.build(result.size)
        _check(pair, result, tell)
        if result.failure:
            return result
        if case.figure is Figure.MEMORY or (memory and case.figure is not Figure.EXTRA_SECONDS):
            tell("memory")
            peaks = peak_extra_bytes(case.build, result.size)
            result.ours.peak_extra_bytes, result.baseline.peak_extra_bytes = peaks
        if case.figure is not Figure.MEMORY:
            _time(pair, result, repeats, sample_seconds, tell)
    except Exception as error:
        result.failure = f"{type(error).__name__}: {error}"
    return result


def relative_errors(actual: Outputs, expected: Outputs) -> dict[str, float]:
    """Compare outputs with their reference.

    Args:
        actual: What a side returned.
        expected: The reference, in float64.

    Returns:
        Per output the largest absolute deviation over the largest absolute entry of the reference; infinite for an
        output that is missing, unexpected, or of another shape.
    """
    errors = dict.fromkeys(actual.keys() | expected.keys(), math.inf)
    for name in actual.keys() & expected.keys():
        truth = expected[name]
        if actual[name].shape == truth.shape:
            scale = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            errors[name] = ((actual[name].to(torch.float64) - truth).abs().max() / scale).item()
    return dict(sorted(errors.items()))


def _check(pair: Pair, result: Measurement, tell: Callable[[str], None]) -> None:
    result.tolerance = pair.tolerance
    tell("float64 reference")
    expected = pair.reference()
    for label, side, call in (("ours", result.ours, pair.ours), ("baseline", result.baseline, pair.baseline)):
        tell(f"check {label}")
        actual = call()
        side.errors = relative_errors(actual, expected)
        result.dtype = result.dtype or ", ".join(sorted({str(x.dtype).removeprefix("torch.") for x in actual.values()}))
        # Written so that NaN fails too.
        wrong = [f"{name} is off by {error:.1e}" for name, error in side.errors.items() if not error <= pair.tolerance]
        if wrong and not result.failure:
            result.failure = f"check failed: {label}: {', '.join(wrong)}; allowed is {pair.tolerance:.1e}"


def _time(pair: Pair, result: Measurement, repeats: int, sample_seconds: float, tell: Callable[[str], None]) -> None:
    sides = ((result.ours, pair.ours), (result.baseline, pair.baseline))
    with without_garbage_collection():
        tell("warm-up")
        for side, call in sides:
            once = seconds(call, 1)
            side.calls_per_sample = max(1, round(sample_seconds / once)) if once < sample_seconds else 1
        for index in range(repeats):
            tell(f"sample {index + 1} of {repeats}")
            for side, call in sides:
                side.seconds.append(seconds(call, side.calls_per_sample))


def seconds(call: Callable[[], object], calls: int) -> float:
    """Time calls.

    Args:
        call: What to call.
        calls: How often.

    Returns:
        Mean time of one call.
    """
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the collector away from what is timed."""
    # A collection that falls into one side's sample would be charged to that side.
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
