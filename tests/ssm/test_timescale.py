"""Step sizes."""

import math

import pytest
import torch

from milkweed import ssm


def test_log_uniform():
    log_dt = ssm.log_timescale(10_000, 1e-4, 1e-1, generator=torch.Generator().manual_seed(0))
    assert log_dt.min() >= math.log(1e-4)
    assert log_dt.max() <= math.log(1e-1)
    assert abs(log_dt.mean() - math.log(1e-4 * 1e-1) / 2) < 0.05


def test_bad_range():
    with pytest.raises(ValueError, match="0 < dt_min <= dt_max, both finite; got dt_min=0"):
        ssm.log_timescale(3, 0, 1)
