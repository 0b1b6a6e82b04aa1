import json
import os

import pytest
import torch

from benchmarks import machine
from benchmarks.machine import Ceilings, busy_warning, describe, environment, find_ceilings


@pytest.mark.parametrize(("load", "threads", "warned"), [(0.1, 4, False), (3.0, 4, True), (2.0, 2, False)])
def test_a_busy_machine_is_named(monkeypatch, load, threads, warned):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    warning = busy_warning()
    assert (warning is not None) is warned
    assert not warned or "load 3.0" in warning


def test_the_floor_is_the_slower_of_products_and_copies():
    ceilings = Ceilings(flops=100, bytes=10)
    assert ceilings.floor(1000, 10) == 10
    assert ceilings.floor(100, 30) == 3
    assert ceilings.floor(0, 0) is None


def test_ceilings_are_operations_and_bytes_over_the_best_time(monkeypatch):
    taken = iter([9.0, 4.0] * 100)
    monkeypatch.setattr(machine, "seconds", lambda call, calls, device: next(taken))
    # Products of 256 × 256 matrices, and a tensor of 2^20 floats that is read and written.
    assert find_ceilings("cpu", coarse=True) == Ceilings(2 * 256**3 / 4, 2 * 4 * 2**20 / 4)


def test_environment_is_json():
    found = json.loads(json.dumps(environment("cpu", Ceilings(2.0, 3.0))))
    assert found["ceilings"] == {"flops": 2.0, "bytes": 3.0}
    assert found["machine"] == describe("cpu")
    assert found["torch"] == torch.__version__
    assert {"avx512f", "avx512_bf16"} <= found["cpu_flags"].keys()
    assert {"date", "git", "python", "milkweed", "cpu", "threads"} <= found.keys()
    assert f"{torch.get_num_threads()} thread" in found["machine"]
