"""Step sizes: 1/dt is a mode's memory length in steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import checked, whole


@checked
def log_timescale(
    channels: int, dt_min: float = 1e-3, dt_max: float = 1e-1, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw log dt so that dt is log-uniform on [dt_min, dt_max].

    Args:
        channels: How many.
        dt_min: Smallest step; 1/dt_min is the longest memory, in steps.
        dt_max: Largest step.
        generator: Random numbers.

    Returns:
        (channels,) float32.

    Raises:
        ValueError: Not 0 < dt_min <= dt_max.

    Source:
        How to Train Your HiPPO (arXiv 2206.12037), section 3.4.

    Example:
        >>> dt = mw.ssm.log_timescale(1000, dt_min=0.01, dt_max=0.1).exp()
        >>> bool(dt.min() >= 0.01), bool(dt.max() <= 0.1)
        (True, True)
    """
    channels = whole("channels", channels, 0)
    if not 0 < dt_min <= dt_max < math.inf:
        raise ValueError(f"expected 0 < dt_min <= dt_max, both finite; got dt_min={dt_min}, dt_max={dt_max}")
    low, high = math.log(dt_min), math.log(dt_max)
    return low + (high - low) * torch.rand(channels, generator=generator)
