"""First-order linear recurrences as a loop over the steps, for programs that other runtimes run."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.ops._export import scan


def linear_recurrence(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """Run a and x (rows, L) from ``initial`` (rows,): (rows, L)."""

    def step(h: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
        h = both[0] * h + both[1]
        return h, h

    return scan(step, initial, torch.stack([a.T, x.T], 1))[1].T
