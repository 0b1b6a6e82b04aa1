import dataclasses
import json
import math

import pytest
import torch

from benchmarks.case import Figure, NotHereError, Work
from benchmarks.runner import Outcome, Side, relative_errors, run, slope


def test_sides_alternate_after_the_check(toy, settings):
    calls = []
    outcome = run(toy(calls=calls), settings)
    check, warm_up, samples = 1, 1, 3
    assert calls == ["ours", "peer"] * (check + warm_up + samples)
    assert len(outcome.sides["ours"].seconds) == len(outcome.sides["peer"].seconds) == samples


def test_short_calls_are_repeated_within_a_sample(toy, settings):
    outcome = run(toy(), dataclasses.replace(settings, repeats=1, sample_seconds=0.01))
    assert all(side.calls > 1 for side in outcome.sides.values())


def test_a_case_that_took_long_takes_no_further_sample(toy, settings):
    outcome = run(toy(), dataclasses.replace(settings, repeats=50, case_seconds=0))
    assert len(outcome.sides["ours"].seconds) == 3


@pytest.mark.parametrize("wrong", [{"ours": 1.1}, {"peer": 1.1}, {"ours": math.nan}, {"peer": math.inf}])
def test_a_wrong_side_gets_no_figure_and_is_not_timed(toy, settings, wrong):
    calls = []
    outcome = run(toy(bar=1.0, floor_bar=0.5, flops=1, calls=calls, **wrong), settings)
    (side,) = wrong
    assert outcome.failure.startswith(f"{side}: wrong: output is off by")
    assert "allowed is 1.0e-06" in outcome.failure
    assert calls.count(side) == 1
    assert not outcome.sides[side].seconds
    assert outcome.value is outcome.spread is outcome.memory_ratio is outcome.meets_bar is None
    assert outcome.fraction_of_floor is outcome.meets_floor_bar is None


def test_a_wrong_eager_side_leaves_the_ratio(toy, settings):
    outcome = run(toy(eager=2.0), settings)
    assert not outcome.failure
    assert outcome.value > 0
    assert outcome.ratio("eager") is None
    assert outcome.sides["eager"].failure.startswith("wrong")


def test_an_error_inside_a_case_is_recorded(toy, settings):
    outcome = run(toy(raises=RuntimeError("no such layer")), settings)
    assert outcome.failure == "RuntimeError: no such layer"
    assert outcome.value is None
    outcome = run(toy(raises=ModuleNotFoundError("pip install it")), settings)
    assert (outcome.failure, outcome.skipped) == ("", "pip install it")


def test_what_is_not_here_is_skipped(toy, settings):
    outcome = run(toy(raises=NotHereError("there is one GPU only")), settings)
    assert (outcome.failure, outcome.skipped) == ("", "there is one GPU only")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_on_a_gpu_must_give_the_same_again(toy, settings, device):
    outputs = [{"output": torch.full((3,), 1 + step * 1e-7)} for step in range(9)]
    sides = {"ours": outputs.pop, "peer": lambda: {"output": torch.ones(3)}}
    truth = {"output": torch.ones(3, dtype=torch.float64)}
    work = Work(sides, lambda: dict.fromkeys(sides, truth), dict.fromkeys(sides, 1e-3), 1, 1)
    outcome = run(dataclasses.replace(toy(device=device), build=lambda size: work), settings)
    assert outcome.failure == ("ours: not the same when run again: output" if device == "cuda" else "")


def test_the_size_is_halved_until_it_fits(toy, settings):
    fits = toy()

    def build(size):
        if size["n"] > 2:
            raise torch.OutOfMemoryError("too large")
        return fits.build(size)

    outcome = run(dataclasses.replace(fits, build=build, size={"n": 9}), settings)
    assert outcome.size == {"n": 2}
    assert outcome.record()["reduced"]
    assert outcome.value > 0
    assert "out of memory at n 1" in run(toy(raises=torch.OutOfMemoryError()), settings).failure


def test_memory_case_is_not_timed(toy, settings):
    outcome = run(toy(figure=Figure.MEMORY), dataclasses.replace(settings, memory=False))
    assert outcome.value == 4.0
    assert not outcome.sides["ours"].seconds
    assert outcome.spread is None


def test_memory_of_a_fresh_interpreter_is_not_ours(toy, settings):
    assert run(toy(figure=Figure.EXTRA_SECONDS), settings).memory_ratio is None


def test_steps_are_told(toy, settings):
    steps = []
    run(toy(), dataclasses.replace(settings, repeats=2, on_step=steps.append))
    assert steps == [
        "build",
        "float64",
        "check ours",
        "check peer",
        "memory",
        "warm-up",
        "sample 1 of 2",
        "sample 2 of 2",
    ]


def filled(case, ours, peer, peaks=(None, None), floor=None):
    sides = {"ours": Side(seconds=ours, peak_bytes=peaks[0]), "peer": Side(seconds=peer, peak_bytes=peaks[1])}
    return Outcome(case, case.size, sides, floor=floor)


def test_ratio_is_of_medians_and_spread_of_neighbours(toy):
    outcome = filled(toy(bar=2.0, floor_bar=0.5), [1.0, 2.0, 4.0], [6.0, 6.0, 6.0], floor=0.5)
    assert outcome.value == 3.0
    assert outcome.spread == pytest.approx((1.8, 5.4))
    assert outcome.meets_bar is True
    assert outcome.fraction_of_floor == 0.25
    assert outcome.meets_floor_bar is False


def test_the_tiny_size_is_not_judged(toy):
    outcome = filled(toy(bar=2.0, floor_bar=0.5), [1.0], [6.0], floor=0.5)
    outcome.size = outcome.case.tiny
    assert outcome.meets_bar is outcome.meets_floor_bar is None
    assert not outcome.record()["reduced"]


def test_extra_seconds_are_a_difference_with_a_bar_from_above(toy):
    outcome = filled(toy(figure=Figure.EXTRA_SECONDS, bar=1.0), [3.5, 3.5], [2.0, 2.0])
    assert outcome.value == 1.5
    assert outcome.meets_bar is False


def test_memory_ratio_needs_two_peaks_of_some_size(toy):
    case = toy(figure=Figure.MEMORY, bar=3.0)
    assert filled(case, [], [], (2 * 2**20, 8 * 2**20)).value == 4.0
    assert filled(case, [], [], (2 * 2**20, 8 * 2**20)).meets_bar is True
    assert filled(case, [], [], (None, 8 * 2**20)).value is None
    assert filled(case, [], [], (100, 8 * 2**20)).value is None


def test_slopes_of_power_laws():
    assert slope({length: 3e-6 * length**1.2 for length in (8, 64, 4096)}) == pytest.approx(1.2)
    assert slope(dict.fromkeys((8, 64), 5)) == pytest.approx(0, abs=1e-12)
    assert slope({8: 1.0}) is None


def test_growth_is_measured_at_all_lengths(toy, settings):
    outcome = run(toy(figure=Figure.GROWTH, flops=16), settings)
    assert not outcome.failure
    assert outcome.times.keys() == outcome.peaks.keys() == {8, 16}
    assert outcome.value == slope(outcome.times)
    assert outcome.fraction_of_floor == 16e-9 / outcome.times[16]
    outcome.times = {1024: 1e-3, 65536: 64e-3}
    outcome.peaks, outcome.floors = {1024: 2**20, 65536: 2**27}, {1024: None, 65536: 0.032}
    record = json.loads(json.dumps(outcome.record()))
    assert record["value"] == pytest.approx(1)
    assert record["fraction_of_floor"] == pytest.approx(0.5)
    assert record["growth"]["median_s"] == {"1024": 1e-3, "65536": 64e-3}
    assert record["growth"]["memory_slope"] == pytest.approx(7 / 6)


def test_growth_of_a_wrong_result_has_no_figure(toy, settings):
    calls = []
    outcome = run(toy(figure=Figure.GROWTH, ours=2.0, calls=calls), settings)
    assert "output is off by 1.0e+00" in outcome.failure
    assert calls == ["ours"]
    assert outcome.value is None


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
