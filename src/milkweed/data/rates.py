"""Sequences at another sampling rate than that of the training."""

import math
from typing import Any

import torch
from torch.utils.data import Dataset

from milkweed._batches import Batch


def check_data_rate(rate: Any) -> float:
    """Refuse a rate that is neither a whole number k nor 1/k; one read as text or typed as 0.3333 is made exact."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ValueError(f"rate must be above 0 and finite; got {rate!r}; use e.g. 2 for half as many samples")
    whole = round(rate) if rate >= 1 else round(1 / rate)
    exact = whole if rate >= 1 else 1 / whole
    if abs(exact - rate) > 1e-3 * rate:
        raise ValueError(
            f"rate={rate:g} must be a whole number k, for every k-th sample, or 1/k, for k samples for one; "
            f"use {whole} or resample the data yourself"
            if rate >= 1
            else f"rate={rate:g} must be 1/k with a whole number k, for k samples for every one; use {exact:g}"
        )
    return float(exact)


def resampled(batch: Batch, rate: float) -> Batch:
    """A batch at 1/``rate`` times the sampling rate: every rate-th step, without a filter; or 1/rate steps for each.

    Steps in between lie on straight lines, and after the last one they repeat it. Targets of every step follow the
    inputs, and lengths are ceil(length / rate).

    Source:
        As in the zero-shot experiments of S4 (arXiv 2111.00396) on speech at 8 kHz: `x[::2]`.
    """
    if rate == 1:
        return batch
    inputs, targets, lengths = batch["inputs"], batch["targets"], batch["lengths"]
    steps = inputs.shape[1]
    # Numbers of a sequence are (B, N), classes of every step too, but integers.
    of_steps = targets.ndim == 3 or (targets.ndim == 2 and not targets.is_floating_point())
    found = {"inputs": _steps(inputs, lengths, rate), "lengths": (lengths / rate).ceil().long()}
    if of_steps and targets.shape[1] == steps:
        found["targets"] = _steps(targets, lengths, rate)
    return batch | found


def _steps(values: torch.Tensor, lengths: torch.Tensor, rate: float) -> torch.Tensor:
    if rate > 1:
        return values[:, :: round(rate)]
    times = round(1 / rate)
    if not values.is_floating_point():
        return values.repeat_interleave(times, 1)
    last = (lengths.long() - 1)[:, None]
    place = torch.arange(values.shape[1], device=values.device).expand(values.shape[:2])
    following = torch.minimum(place + 1, torch.maximum(place, last))
    index = following.reshape(*following.shape, *[1] * (values.ndim - 2)).expand_as(values)
    share = torch.arange(times, device=values.device, dtype=values.dtype) / times
    share = share.reshape(1, 1, times, *[1] * (values.ndim - 2))
    here, there = values[:, :, None], values.gather(1, index)[:, :, None]
    return torch.where(share == 0, here, here + share * (there - here)).flatten(1, 2)


class Resampled(Dataset):
    """A split at another sampling rate; what else it knows, such as names, is asked of the split."""

    def __init__(self, split: Any, rate: float, name: str) -> None:
        self.split, self.rate = split, rate
        shortest = getattr(split, "lengths", None)
        if shortest is not None and int(shortest.min()) < rate:
            count = int(shortest.min())
            raise ValueError(
                f"rate={rate:g} leaves no samples: the shortest sequence of the {name} split has {count}; use "
                f"rate={max(1, count // 2)} or less"
            )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: list[int]) -> Batch:
        return resampled(self.split[indices], self.rate)

    def __getattr__(self, name: str) -> Any:
        if name == "split":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.split, name)
