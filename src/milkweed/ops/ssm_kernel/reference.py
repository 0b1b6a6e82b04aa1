"""Diagonal state space kernels and states, by their definitions: one exponential per mode and time step."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.ops import pairs
from milkweed.ops._common import without_autocast


def diagonal_ssm_kernel(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
    """``K_l = 2 Re sum_n c_n exp(dt_a_n l)``, with an array of N × L exponentials."""
    real, imag = _modes(dt_a, torch.arange(length, device=dt_a.device))
    return 2 * (c[..., 0, None] * real - c[..., 1, None] * imag).sum(-2)


def diagonal_ssm_state(u: Tensor, dt_a: Tensor) -> Tensor:
    """``x_n = sum_l u_l exp(dt_a_n (L - 1 - l))``, with an array of N × L exponentials."""
    length = u.shape[-1]
    powers = _modes(dt_a, torch.arange(length - 1, -1, -1, device=dt_a.device))
    with without_autocast(u):
        return torch.stack([torch.einsum("bhl,hnl->bhn", u, part) for part in powers], -1)


def _modes(dt_a: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt_a * steps) as real and imaginary part, each (rows, N, steps)."""
    found = pairs.exp_of_steps(dt_a[..., None, :], steps)
    return found[..., 0], found[..., 1]
