import pytest

from benchmarks.footprint import peak_extra_bytes

MIB = 2**20
SIDES = """
import torch
from benchmarks.case import Work

def keep(mib):
    first = torch.ones(mib * 2**18)
    second = first + 1
    del first
    return {"output": second}

def drop(mib):
    for _ in range(3):
        torch.ones(mib * 2**18)

def build(size):
    return Work({"ours": lambda: keep(size["mib"]), "peer": lambda: drop(size["mib"])}, dict, {})

def broken(size):
    raise ValueError("no such size")
"""


@pytest.fixture
def sides(tmp_path, monkeypatch):
    (tmp_path / "memory_sides.py").write_text(SIDES)
    monkeypatch.syspath_prepend(tmp_path)
    return pytest.importorskip("memory_sides")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mib", [4, 40])
def test_peak_is_what_lives_at_the_same_time(sides, mib):
    found = peak_extra_bytes(sides.build, {"mib": mib}, ["ours", "peer"])
    if found["ours"] is None:
        pytest.skip("this system has no resettable high-water mark of memory")
    assert found["ours"] == pytest.approx(2 * mib * MIB, abs=1.5 * MIB)
    assert found["peer"] == pytest.approx(mib * MIB, abs=1.5 * MIB)


def test_only_the_sides_asked_for_are_called(sides):
    assert peak_extra_bytes(sides.build, {"mib": 1}, ["peer"]).keys() == {"peer"}


def test_a_failure_in_the_fresh_process_is_told(sides):
    with pytest.raises(RuntimeError, match="ValueError: no such size"):
        peak_extra_bytes(sides.broken, {}, ["ours"])
