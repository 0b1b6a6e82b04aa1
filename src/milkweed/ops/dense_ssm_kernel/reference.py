"""Kernels and states of dense discrete state spaces, by their definitions: one step of the recurrence at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_ssm_kernel(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """``K_l = c a^l b``, one matrix-vector product per lag."""
    x = b
    kernel = [(c * x).sum(-1)]
    for _ in range(length - 1):
        x = (a * x[:, None]).sum(-1)
        kernel.append((c * x).sum(-1))
    return torch.stack(kernel, -1)


def dense_ssm_state(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``x_t = a x_{t-1} + b u_t`` from zero, after the last step."""
    x = b * u[..., :1]
    for t in range(1, u.shape[-1]):
        x = (a * x[..., None, :]).sum(-1) + b * u[..., t : t + 1]
    return x


def dense_ssm_advance(x: Tensor, a: Tensor, steps: Tensor) -> Tensor:
    """``a^steps x``, one matrix-vector product per step."""
    for t in range(int(steps.max()) if len(steps) else 0):
        x = torch.where((t < steps)[:, None, None], (a * x[..., None, :]).sum(-1), x)
    return x
