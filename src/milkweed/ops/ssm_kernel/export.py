"""Diagonal state space kernels as real matrix products in plain functions, for programs that other runtimes run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from milkweed.ops import pairs
from milkweed.ops._common import without_autocast
from milkweed.ops._export import balanced, first, largest, pieces

# Steps of the inner part of the exponent if the length is not known: its powers are constants of the program.
_USUAL_STEPS = 32


def _inner(length: int) -> int:
    most = largest(length)
    return _USUAL_STEPS if most is None else balanced(most, 1, 64)


def _powers(dt_a: Tensor, steps: Tensor) -> Tensor:
    """exp(dt_a * steps), (rows, steps, N, 2)."""
    return pairs.exp_of_steps(dt_a[:, None], steps[:, None])


def diagonal_ssm_kernel(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
    """Evaluate the kernel: c (batch, rows, N, 2), dt_a (rows, N, 2), L -> (batch, rows, L)."""
    # l = i L1 + j: K[i, j] = 2 Re sum_n (c_n e^{z_n L1 i}) e^{z_n j}, one product over real and imaginary parts.
    inner = _inner(length)
    outer = pieces(length, inner)
    with without_autocast(c):
        steps = torch.arange(inner, device=c.device)
        fine = _powers(dt_a, steps)
        coarse = _powers(dt_a, torch.arange(outer, device=c.device) * inner)
        weighted = 2 * pairs.multiply(c[:, :, None], coarse)
        left = torch.cat([weighted[..., 0], -weighted[..., 1]], -1)
        right = torch.cat([fine[..., 0], fine[..., 1]], -1)
        return first((left @ right.transpose(1, 2)).flatten(2), length)


def diagonal_ssm_state(u: Tensor, dt_a: Tensor) -> Tensor:
    """Evaluate the state after the last step: u (batch, rows, L), dt_a -> (batch, rows, N, 2)."""
    length = u.shape[-1]
    inner = _inner(length)
    outer = pieces(length, inner)
    with without_autocast(u):
        # Zeros before the first step leave the state what it is.
        folded = F.pad(u, (outer * inner - length, 0)).reshape(*u.shape[:2], outer, inner)
        fine = _powers(dt_a, torch.arange(inner - 1, -1, -1, device=u.device))
        coarse = _powers(dt_a, (outer - 1 - torch.arange(outer, device=u.device)) * inner)
        sums = folded @ torch.cat([fine[..., 0], fine[..., 1]], -1)
        return pairs.multiply(coarse, torch.stack(sums.chunk(2, -1), -1)).sum(2)
