"""First-order linear recurrences by their definition: one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_recurrence(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """``h_t = a_t h_{t-1} + x_t``: a (rows, L), x (rows, L), h_{-1} (rows,) -> (rows, L)."""
    h, states = initial, []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1)
