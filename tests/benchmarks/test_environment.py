import os

import pytest
import torch

from milkweed.benchmarks.environment import busy_warning


@pytest.mark.parametrize(("load", "threads", "warned"), [(0.1, 4, False), (3.0, 4, True), (2.0, 2, False)])
def test_a_busy_machine_is_named(monkeypatch, load, threads, warned):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    warning = busy_warning()
    assert (warning is not None) is warned
    assert not warned or "load 3.0" in warning
