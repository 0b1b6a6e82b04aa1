"""Diagonal state space kernels as real matrix products with split exponents; README.md derives them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from milkweed.ops._common import rows_per_block, slices, widest_dtype
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.ssm_kernel._operations import kernel_operation, state_operation

# Exponentials and products of one block of channels: 64 channels at N/2 = 32, L = 4096; measured best of 16, 32 and 64.
_BLOCK_BYTES = 8 * 2**20


def _split(length: int) -> tuple[int, int]:
    """L1 (a power of two near √L) and L2 with L1 * L2 >= L."""
    inner = 1 << ((length - 1).bit_length() + 1) // 2
    return inner, -(-length // inner)


def _phases(angle: Tensor, steps: Tensor) -> Tensor:
    """Angle * steps modulo 2π. The product needs more digits than float32 has: 1e4 rad leave an error of 1e-3."""
    wide = widest_dtype(angle)
    turns = angle.to(wide)[:, None] * (steps.to(wide)[:, None] / (2 * math.pi))
    return (turns.sub_(turns.round()) * (2 * math.pi)).to(angle.dtype)


def _exponentials(dt_a: Tensor, count: int, stride: int) -> Tensor:
    """exp(dt_a * i * stride) for i < count, real and imaginary parts: (rows, count, 2, N)."""
    # The exponent is split once more, i = i2 * s + i1, so that only about 2 √count exponentials are evaluated.
    inner, outer = _split(count)
    steps = torch.arange(max(inner, outer), device=dt_a.device)

    def polar(steps: Tensor) -> tuple[Tensor, Tensor]:
        size = torch.exp(dt_a[:, None, :, 0] * steps.to(dt_a.dtype)[:, None])
        angle = _phases(dt_a[..., 1], steps)
        return size * torch.cos(angle), size * torch.sin(angle)

    fine_re, fine_im = (part[:, None] for part in polar(steps[:inner] * stride))
    coarse_re, coarse_im = (part[:, :, None] for part in polar(steps[:outer] * (inner * stride)))
    rows, modes = dt_a.shape[:2]
    out = dt_a.new_empty(rows, outer, inner, 2, modes)
    torch.mul(coarse_re, fine_re, out=out[..., 0, :]).addcmul_(coarse_im, fine_im, value=-1)
    torch.mul(coarse_re, fine_im, out=out[..., 1, :]).addcmul_(coarse_im, fine_re)
    return out.view(rows, outer * inner, 2, modes)[:, :count]


def _times(factor: Tensor, powers: Tensor) -> Tensor:
    """Complex product of (rows, N, 2) with (rows, steps, 2, N), in the layout of the latter."""
    re, im = factor[:, None, :, 0], factor[:, None, :, 1]
    out = torch.empty_like(powers)
    torch.mul(powers[:, :, 0], re, out=out[:, :, 0]).addcmul_(powers[:, :, 1], im, value=-1)
    torch.mul(powers[:, :, 0], im, out=out[:, :, 1]).addcmul_(powers[:, :, 1], re)
    return out


def _row_blocks(rows: int, modes: int, length: int, like: Tensor) -> Iterator[slice]:
    inner, outer = _split(length)
    touched = (length + 8 * modes * (inner + outer)) * like.element_size()
    step = rows_per_block(rows, touched, like.device, budget=_BLOCK_BYTES)
    return slices(rows, step)


def _sum_of_modes(c: Tensor, dt_a: Tensor, length: int, reverse: bool) -> Tensor:
    """Re sum_n c_n exp(dt_a_n l) for c (batch, rows, N, 2), dt_a (rows, N, 2): (batch, rows, L)."""
    batch, rows, modes, _ = c.shape
    inner, outer = _split(length)
    out = on_huge_pages(c.new_empty(batch, rows, length))
    for block in _row_blocks(rows, modes, length, c):
        z = dt_a[block]
        # l = i L1 + j: K[i, j] = Re sum_n (c_n e^{z_n L1 i}) e^{z_n j}, one product (L2 × 2N) · (2N × L1) of real parts
        # and negated imaginary parts with both parts of the fine powers.
        fine = _exponentials(z, inner, 1).flatten(2)
        coarse = _exponentials(z, outer, inner)
        for entry in range(batch):
            weighted = _times(c[entry, block], coarse)
            weighted[:, :, 1].neg_()
            product = torch.bmm(weighted.flatten(2), fine.transpose(1, 2))
            out[entry, block] = product.flatten(1)[:, :length]
    return out.flip(-1) if reverse else out


def _moments(g: Tensor, dt_a: Tensor, first: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """sum_l g_l e^{z l}, and sum_l l g_l e^{z l} if asked for: g (batch, rows, L) → (batch, rows, N, 2) each."""
    g = g.flip(-1) if reverse else g
    batch, rows, length = g.shape
    modes = dt_a.shape[1]
    inner, outer = _split(length)
    zeroth = g.new_empty(batch, rows, modes, 2)
    first_moment = g.new_empty(zeroth.shape if first else 0)
    # With l = i L1 + j the inner sums over j are one product; l g = (i L1 + j) g gives the first moment's from the same
    # two, sum_j j g e^{z j} and i L1 sum_j g e^{z j}.
    position = torch.arange(inner, device=g.device, dtype=g.dtype)[:, None]
    offset = inner * torch.arange(outer, device=g.device, dtype=g.dtype)[:, None]
    for block in _row_blocks(rows, modes, length, g):
        fine = _exponentials(dt_a[block], inner, 1).flatten(2)
        coarse = _exponentials(dt_a[block], outer, inner)
        columns = torch.cat([fine, fine * position], 2) if first else fine
        for entry in range(batch):
            padded = torch.nn.functional.pad(g[entry, block], (0, outer * inner - length))
            sums = torch.bmm(padded.view(-1, outer, inner), columns).unflatten(2, (-1, 2, modes))
            zeroth[entry, block] = _contract(coarse, sums[:, :, 0])
            if first:
                shifted = torch.addcmul(sums[:, :, 1], sums[:, :, 0], offset[:, None])
                first_moment[entry, block] = _contract(coarse, shifted)
    return zeroth, first_moment


def _contract(powers: Tensor, sums: Tensor) -> Tensor:
    """Complex sum_i powers_i sums_i, both (rows, steps, 2, N): (rows, N, 2)."""
    re = (powers[:, :, 0] * sums[:, :, 0]).addcmul_(powers[:, :, 1], sums[:, :, 1], value=-1).sum(1)
    im = (powers[:, :, 0] * sums[:, :, 1]).addcmul_(powers[:, :, 1], sums[:, :, 0]).sum(1)
    return torch.stack([re, im], -1)


diagonal_ssm_kernel = kernel_operation("diagonal_ssm_kernel", _sum_of_modes, _moments)
diagonal_ssm_state = state_operation("diagonal_ssm_state", _sum_of_modes, _moments)
