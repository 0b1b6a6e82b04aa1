"""How time and memory grow with the sequence: slopes on logarithmic axes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from milkweed.benchmarks.cases import causal_mixer, fft_conv, long_conv, m2_bert, s4, s4d
from milkweed.benchmarks.memory import peak_extra_bytes
from milkweed.benchmarks.registry import Pair, Size
from milkweed.benchmarks.run import relative_errors, seconds, without_garbage_collection

if TYPE_CHECKING:
    from rich.table import Table

TIME_BAR, MEMORY_BAR = 1.15, 1.05
LENGTHS = tuple(2**power for power in range(10, 17))


@dataclass(frozen=True)
class Growth:
    """One thing to be measured at several lengths.

    Attributes:
        name: Unique, beginning with ``growth-``.
        description: One line.
        build: Makes milkweed's side and its reference for a size.
        size: All of the size but its ``length``.
        lengths: Where it is measured.
        time_bar: The largest exponent of its time that is promised.
    """

    name: str
    description: str
    build: Callable[[Size], Pair]
    size: Size
    lengths: tuple[int, ...] = LENGTHS
    time_bar: float = TIME_BAR

    def at(self, length: int) -> Size:
        """Complete the size.

        Args:
            length: L.

        Returns:
            The size.
        """
        return {**self.size, "length": length}


@dataclass
class GrowthMeasurement:
    """What came out.

    Attributes:
        case: What was measured.
        seconds: Median time of a call, by length.
        bytes: Peak memory beyond the inputs, by length; empty where the system does not tell.
        failure: Why there is no figure; empty if all is well.
    """

    case: Growth
    seconds: dict[int, float] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)
    failure: str = ""

    @property
    def time_slope(self) -> float | None:
        """Exponent of the length in the time; None without two times."""
        return slope(self.seconds)

    @property
    def memory_slope(self) -> float | None:
        """Exponent of the length in the memory; None without two figures."""
        return slope(self.bytes)


def slope(values: dict[int, float] | dict[int, int]) -> float | None:
    """Fit a power law by least squares on logarithmic axes.

    Args:
        values: Positive numbers by length.

    Returns:
        The exponent; None for fewer than two numbers.
    """
    if len(values) < 2:
        return None
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def all_growths() -> list[Growth]:
    """List what is measured.

    Returns:
        Layers and the convolution alone, forward and backward; the causal mixer and a block of M2-BERT, forward.
    """
    layer = {"batch": 4, "d_model": 64, "d_state": 64}
    convolution = partial(fft_conv.build, training=True, gated=False)
    return [
        Growth("growth-s4", "S4 layer (LegS), all gradients", s4.build_layer, layer),
        Growth("growth-s4d", "S4D layer, all gradients", s4d.build_layer, layer),
        Growth("growth-fft-conv", "causal convolution, all gradients", convolution, {"batch": 4, "channels": 64}),
        Growth(
            "growth-causal-mixer",
            "causal Monarch mixer of order 2",
            causal_mixer.build,
            {"batch": 4, "d_model": 64},
            time_bar=1.5,  # O(p L^{1 + 1/p}) is what it promises
        ),
        Growth("growth-long-conv", "LongConv layer, all gradients", long_conv.build, {"batch": 4, "d_model": 64}),
        Growth(
            "growth-m2-bert",
            "a block of M2-BERT 80M with its embeddings",
            m2_bert.build,
            {"d_model": 768, "depth": 1, "heads": 12},
            tuple(2**power for power in range(9, 16)),
        ),
    ]


def measure_growth(
    case: Growth,
    *,
    repeats: int = 10,
    memory: bool = True,
    lengths: Sequence[int] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> GrowthMeasurement:
    """Check the shortest length against float64 and, if it is right, measure all lengths in turn.

    Args:
        case: What to measure.
        repeats: Samples of each length.
        memory: Whether to measure memory too.
        lengths: The lengths, if not the case's own.
        on_step: Told before each step what is about to happen.

    Returns:
        The measurement, with ``failure`` set where there is no figure.
    """
    result, lengths = GrowthMeasurement(case), lengths or case.lengths
    try:
        on_step("check against float64")
        result.failure = _wrong(case.build(case.at(lengths[0])))
        if result.failure:
            return result
        for length in lengths if memory else ():
            on_step(f"memory at {length}")
            peak, _ = peak_extra_bytes(partial(_ours_alone, case.build), case.at(length))
            if peak:
                result.bytes[length] = peak
        calls = {length: case.build(case.at(length)).ours for length in lengths}
        samples: dict[int, list[float]] = {length: [] for length in lengths}
        with without_garbage_collection():
            for call in calls.values():
                call()
            for index in range(repeats):
                on_step(f"sample {index + 1} of {repeats}")
                for length, call in calls.items():
                    samples[length].append(seconds(call, max(1, 4096 // length)))
        result.seconds = {length: statistics.median(found) for length, found in samples.items()}
    except Exception as error:
        result.failure = f"{type(error).__name__}: {error}"
    return result


def growth_table(measurements: Sequence[GrowthMeasurement]) -> Table:
    """Show what came out, one row per case.

    Args:
        measurements: The measurements.

    Returns:
        A table for rich's console.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption_justify="left")
    table.caption = (
        "Exponents of the length, fitted to medians over all lengths. Memory is the peak beyond the inputs, gradients "
        "and graph included."
    )
    for heading in ("case", "lengths", "time", "time grows like", "bar", "memory, MiB", "memory grows like", "bar "):
        table.add_column(heading, no_wrap=heading == "case", justify="left" if heading == "case" else "right")
    for result in measurements:
        times, peaks = list(result.seconds.items()), list(result.bytes.values())
        table.add_row(
            result.case.name,
            f"{times[0][0]:,} .. {times[-1][0]:,}" if times else "-",
            f"{times[0][1] * 1e3:.3g} .. {times[-1][1] * 1e3:.3g} ms" if times else "[red]failed[/red]",
            *_exponent(result.time_slope, result.case.time_bar),
            f"{peaks[0] / 2**20:.1f} .. {peaks[-1] / 2**20:.1f}" if peaks else "-",
            *_exponent(result.memory_slope, MEMORY_BAR),
        )
    return table


def growth_record(result: GrowthMeasurement) -> dict[str, object]:
    """Put a measurement into plain JSON values.

    Args:
        result: The measurement.

    Returns:
        A dictionary.
    """
    return {
        "name": result.case.name,
        "description": result.case.description,
        "size": dict(result.case.size),
        "failure": result.failure or None,
        "median_s": {str(length): value for length, value in result.seconds.items()},
        "peak_extra_bytes": {str(length): value for length, value in result.bytes.items()},
        "time_slope": result.time_slope,
        "time_bar": result.case.time_bar,
        "memory_slope": result.memory_slope,
        "memory_bar": MEMORY_BAR,
    }


def _exponent(value: float | None, bar: float) -> tuple[str, str]:
    if value is None:
        return "-", f"<= {bar}"
    verdict = "[green]met[/green]" if value <= bar else "[red]missed[/red]"
    return f"L^{value:.2f}", f"<= {bar} {verdict}"


def _wrong(pair: Pair) -> str:
    errors = relative_errors(pair.ours(), pair.reference())
    wrong = [f"{name} is off by {error:.1e}" for name, error in errors.items() if not error <= pair.tolerance]
    return f"check failed: {', '.join(wrong)}; allowed is {pair.tolerance:.1e}" if wrong else ""


def _ours_alone(build: Callable[[Size], Pair], size: Size) -> Pair:
    """A pair without the plain side, whose memory at great lengths is beyond small machines."""
    return replace(build(size), baseline=dict)
