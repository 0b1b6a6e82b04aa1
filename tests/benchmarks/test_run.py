import math

import pytest
import torch

from milkweed.benchmarks import Case, Figure, measure
from milkweed.benchmarks.run import Measurement, SideMeasurement, relative_errors


def test_sides_alternate_after_the_check(toy):
    calls = []
    result = measure(toy(calls=calls), repeats=4, memory=False, sample_seconds=0)
    check, warm_up = 1, 1
    assert calls == ["ours", "baseline"] * (check + warm_up + 4)
    assert len(result.ours.seconds) == len(result.baseline.seconds) == 4


def test_short_calls_are_repeated_within_a_sample(toy):
    result = measure(toy(), repeats=1, memory=False, sample_seconds=0.01)
    assert result.ours.calls_per_sample > 1
    assert result.baseline.calls_per_sample > 1


@pytest.mark.parametrize("wrong", [{"ours": 1.1}, {"baseline": 1.1}, {"ours": math.nan}, {"baseline": math.inf}])
def test_a_wrong_side_gets_no_figure_and_is_not_timed(toy, wrong):
    calls = []
    result = measure(toy(bar=1.0, calls=calls, **wrong), repeats=3)
    (side,) = wrong
    assert result.failure.startswith(f"check failed: {side}: output is off by")
    assert "allowed is 1.0e-06" in result.failure
    assert calls == ["ours", "baseline"]
    assert not result.ours.seconds
    assert result.value is result.spread is result.memory_ratio is result.meets_bar is None


def test_an_error_inside_a_case_is_recorded(toy):
    def build(size):
        raise RuntimeError("no such layer")

    result = measure(Case("broken", "", "", Figure.FORWARD, build, {}, {}))
    assert result.failure == "RuntimeError: no such layer"
    assert result.value is None


def test_memory_case_is_not_timed(toy):
    result = measure(toy(figure=Figure.MEMORY), repeats=3, memory=False)
    assert result.value == 4.0
    assert not result.ours.seconds
    assert result.spread is None


def test_memory_of_a_fresh_interpreter_is_not_ours(toy):
    result = measure(toy(figure=Figure.EXTRA_SECONDS), repeats=1)
    assert result.memory_ratio is None


def test_steps_are_told(toy):
    steps = []
    measure(toy(), repeats=2, on_step=steps.append)
    assert steps == [
        "build",
        "float64 reference",
        "check ours",
        "check baseline",
        "memory",
        "warm-up",
        "sample 1 of 2",
        "sample 2 of 2",
    ]


def filled(case, ours, baseline, peaks=(None, None)):
    return Measurement(
        case,
        case.size,
        ours=SideMeasurement(seconds=ours, peak_extra_bytes=peaks[0]),
        baseline=SideMeasurement(seconds=baseline, peak_extra_bytes=peaks[1]),
    )


def test_ratio_is_of_medians_and_spread_of_neighbours(toy):
    result = filled(toy(bar=2.0, ideal=4.0), [1.0, 2.0, 4.0], [6.0, 6.0, 6.0])
    assert result.value == 3.0
    assert result.spread == pytest.approx((1.8, 5.4))
    assert result.meets_bar is True
    assert result.fraction_of_ideal == 0.75


def test_extra_seconds_are_a_difference_with_a_bar_from_above(toy):
    result = filled(toy(figure=Figure.EXTRA_SECONDS, bar=1.0), [3.5, 3.5], [2.0, 2.0])
    assert result.value == 1.5
    assert result.meets_bar is False


def test_memory_ratio_needs_two_peaks_of_some_size(toy):
    case = toy(figure=Figure.MEMORY, bar=3.0)
    assert filled(case, [], [], (2 * 2**20, 8 * 2**20)).value == 4.0
    assert filled(case, [], [], (2 * 2**20, 8 * 2**20)).meets_bar is True
    assert filled(case, [], [], (None, 8 * 2**20)).value is None
    assert filled(case, [], [], (100, 8 * 2**20)).value is None


def test_errors_are_relative_to_the_largest_entry():
    expected = {name: torch.tensor([4.0, -8.0], dtype=torch.float64) for name in ("near", "shape", "missing")}
    actual = {"near": torch.tensor([4.0, -8.4]), "shape": torch.ones(3), "extra": torch.ones(2)}
    errors = relative_errors(actual, expected)
    assert errors == {
        "near": pytest.approx(0.05),
        "shape": math.inf,
        "missing": math.inf,
        "extra": math.inf,
    }


def test_nan_is_the_worst_error():
    assert math.isnan(SideMeasurement(errors={"a": math.nan, "b": math.inf}).worst_error)
    assert SideMeasurement().worst_error is None
