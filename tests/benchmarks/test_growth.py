import dataclasses
import json

import pytest
import torch
from rich.console import Console

from milkweed.benchmarks.command import main
from milkweed.benchmarks.growth import (
    Growth,
    GrowthMeasurement,
    all_growths,
    growth_record,
    growth_table,
    measure_growth,
    slope,
)
from milkweed.benchmarks.registry import Pair


def test_slopes_of_power_laws():
    assert slope({length: 3e-6 * length**1.2 for length in (8, 64, 4096)}) == pytest.approx(1.2)
    assert slope(dict.fromkeys((8, 64), 5)) == pytest.approx(0, abs=1e-12)
    assert slope({8: 1.0}) is None


@pytest.mark.parametrize("case", all_growths(), ids=lambda case: case.name)
def test_every_case_runs(case):
    small = dataclasses.replace(case, size={**dict.fromkeys(case.size, 4), "batch": 2})
    result = measure_growth(small, repeats=2, lengths=(16, 32), memory=False)
    assert not result.failure
    assert result.seconds.keys() == {16, 32}
    assert result.time_slope is not None
    assert result.memory_slope is None


def build_wrong(size):
    ones = torch.ones(size["length"])
    return Pair(lambda: {"x": ones}, dict, lambda: {"x": 2 * ones.double()}, 1e-3)


def build_large(size):
    return Pair(lambda: {"x": torch.ones(size["length"], 2**18)}, dict, lambda: {"x": torch.ones(8, 2**18).double()}, 0)


def test_a_wrong_result_has_no_figure():
    result = measure_growth(Growth("growth-wrong", "wrong", build_wrong, {}), lengths=(8, 16), memory=False)
    assert "x is off by 5.0e-01" in result.failure
    assert not result.seconds
    console = Console(width=200)
    with console.capture() as capture:
        console.print(growth_table([result]))
    assert "failed" in capture.get()


def test_memory_is_that_of_one_call():
    result = measure_growth(Growth("growth-large", "large", build_large, {}), lengths=(8, 64), repeats=1)
    assert not result.failure
    if not result.bytes:
        pytest.skip("the system does not tell the peak of memory")
    assert result.memory_slope == pytest.approx(1, abs=0.1)
    assert result.bytes[64] == pytest.approx(64 * 2**20, rel=0.1)


def test_table_and_record():
    times, peaks = {1024: 1e-3, 65536: 64e-3}, {1024: 2**20, 65536: 2**27}
    result = GrowthMeasurement(all_growths()[0], times, peaks)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(growth_table([result]))
    assert "L^1.00  <= 1.15 met" in capture.get()
    assert "L^1.17  <= 1.05 missed" in capture.get()
    record = json.loads(json.dumps(growth_record(result)))
    assert record["time_slope"] == pytest.approx(1)
    assert record["median_s"] == {"1024": 1e-3, "65536": 64e-3}


def test_they_are_listed(capsys):
    assert main(["--list", "--only", "growth"]) == 0
    assert "growth-s4d" in capsys.readouterr().out
