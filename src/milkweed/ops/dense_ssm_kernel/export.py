"""Dense state space kernels and states in plain functions, for programs that other runtimes run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from milkweed.ops._common import widest_dtype, without_autocast
from milkweed.ops._export import balanced, first, largest, pieces, scan
from milkweed.ops.dense_ssm_kernel.eager import precise_powers

# Lags of a kernel that is made whole, as a constant of the program, where no sequence is longer.
_MOST_LAGS = 2**15
# Steps of one turn of the loop where some may be.
_USUAL_STEPS = 64
_BITS_OF_STEPS = 31


def _powers(a: Tensor, count: int) -> list[Tensor]:
    """a^(2^k) - 1 for k < count; without the identity slow modes keep their digits."""
    least = torch.finfo(a.dtype).tiny ** 0.5  # products of two entries stay normal numbers
    powers = precise_powers(a, count)
    while len(powers) < count:
        d = powers[-1]
        powers.append(F.hardshrink(2 * d + d @ d, least))
    return powers


def _moved(x: Tensor, d: Tensor) -> Tensor:
    """Rows x times 1 + d; what has decayed becomes zero, as denormal numbers are slow."""
    return F.hardshrink(x + x @ d, torch.finfo(x.dtype).tiny)


def _columns(powers: list[Tensor], b: Tensor) -> Tensor:
    """The columns a^j b for j < 2^len(powers), as rows (rows, j, N)."""
    columns = b[:, None]
    for d in powers:
        columns = torch.cat([columns, _moved(columns, d.mT)], 1)
    return columns


def _bits(steps: int) -> int:
    return steps.bit_length() - 1


def dense_ssm_kernel(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """Evaluate the kernel: a (rows, N, N), b (rows, N), c (batch, rows, N), L -> (batch, rows, L)."""
    most = largest(length)
    with without_autocast(a):
        if most is None or most > _MOST_LAGS:
            return _looped_kernel(a, b, c, length)
        inner = balanced(most, 1, 128)
        outer = -(-most // inner)
        bits, doublings = _bits(inner), (outer - 1).bit_length()
        powers = _powers(a, max(bits + doublings, 1))
        vectors = c.transpose(0, 1)[:, None]  # (rows, i, batch, N)
        for d in powers[bits : bits + doublings]:
            vectors = torch.cat([vectors, _moved(vectors.flatten(1, 2), d).unflatten(1, vectors.shape[1:3])], 1)
        columns = _columns(powers[:bits], b)
        kernel = (vectors[:, :outer].transpose(1, 2).flatten(1, 2) @ columns.mT).reshape(b.shape[0], -1, outer * inner)
        return first(kernel, length).transpose(0, 1)


def _looped_kernel(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    powers = _powers(a, _bits(_USUAL_STEPS) + 1)
    columns, d = _columns(powers[:-1], b), powers[-1]
    count = pieces(length, _USUAL_STEPS)

    def step(vector: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return _moved(vector, d), vector

    vectors = scan(step, c.transpose(0, 1), torch.arange(count, device=a.device))[1]  # (i, rows, batch, N)
    kernel = vectors.permute(2, 1, 0, 3) @ columns.mT
    return first(kernel.flatten(2), length)


def dense_ssm_state(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Evaluate the state after the last step: u (batch, rows, L), a, b -> (batch, rows, N)."""
    length = u.shape[-1]
    most = largest(length)
    inner = _USUAL_STEPS if most is None else balanced(most, 1, 128)
    count = pieces(length, inner)
    with without_autocast(a):
        powers = _powers(a, _bits(inner) + 1)
        d = powers[-1]
        # Zeros before the first step leave the state what it is.
        folded = F.pad(u, (count * inner - length, 0)).reshape(*u.shape[:2], count, inner)
        driven = folded @ _columns(powers[:-1], b).flip(1)  # (batch, rows, i, N)

        def step(state: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
            state = _moved(state, d.mT) + added
            return state, state

        inputs = driven.permute(2, 1, 0, 3)
        return scan(step, torch.zeros_like(driven[:, :, 0]).transpose(0, 1), inputs)[0].transpose(0, 1)


def dense_ssm_advance(x: Tensor, a: Tensor, steps: Tensor) -> Tensor:
    """Multiply x (batch, rows, N) by a (rows, N, N) as often as ``steps`` (batch,) says: (batch, rows, N)."""
    with without_autocast(a):
        wide = widest_dtype(a)
        least = torch.finfo(wide).tiny ** 0.5
        modes = a.shape[-1]

        # One carry holds the power and the states, as rows below it.
        def step(carry: Tensor, bit: Tensor) -> tuple[Tensor, Tensor]:
            power, states = carry[:, :modes], carry[:, modes:]
            taken = torch.remainder(torch.div(steps, bit, rounding_mode="floor"), 2) == 1
            states = torch.where(taken[:, None], states @ power.mT, states)
            power = F.hardshrink(power @ power, least)
            return torch.cat([power, states], 1), bit

        bits = 2 ** torch.arange(_BITS_OF_STEPS, device=a.device)
        start = torch.cat([a.to(wide), x.transpose(0, 1).to(wide)], 1)
        return scan(step, start, bits)[0][:, modes:].transpose(0, 1).to(x.dtype)
