"""Diagonal state space kernels as real matrix products with split exponents; README.md derives them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops import pairs
from milkweed.ops._common import register_differentiable, rows_per_block, without_autocast
from milkweed.ops._memory import on_huge_pages
from milkweed.ops.ssm_kernel import reference

# Exponentials and products of one block of channels: 64 channels at N/2 = 32, L = 4096; measured best of 16, 32 and 64.
_BLOCK_BYTES = 8 * 2**20


def _split(length: int) -> tuple[int, int]:
    """L1 (a power of two near √L) and L2 with L1 * L2 >= L."""
    inner = 1 << ((length - 1).bit_length() + 1) // 2
    return inner, -(-length // inner)


def _phases(angle: Tensor, steps: Tensor) -> Tensor:
    """Angle * steps modulo 2π. The product needs more digits than float32 has: 1e4 rad leave an error of 1e-3."""
    wide = angle.dtype if angle.device.type == "mps" else torch.float64
    turns = angle.to(wide)[:, None] * (steps.to(wide)[:, None] / (2 * math.pi))
    return (turns.sub_(turns.round()) * (2 * math.pi)).to(angle.dtype)


def _exponentials(dt_a: Tensor, count: int, stride: int) -> Tensor:
    """exp(dt_a * i * stride) for i < count, real and imaginary parts.

    The exponent is split once more, i = i2 * s + i1, so that only about 2 √count exponentials are evaluated.

    Returns:
        (rows, count, 2, N).
    """
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
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _sum_of_modes(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
    """Re sum_n c_n exp(dt_a_n l) for c (batch, rows, N, 2), dt_a (rows, N, 2): (batch, rows, L)."""
    batch, rows, modes, _ = c.shape
    inner, outer = _split(length)
    out = on_huge_pages(c.new_empty(batch, rows, length))
    for block in _row_blocks(rows, modes, length, c):
        z = dt_a[block]
        fine = _exponentials(z, inner, 1).flatten(2)
        coarse = _exponentials(z, outer, inner)
        for entry in range(batch):
            weighted = _times(c[entry, block], coarse)
            weighted[:, :, 1].neg_()
            product = torch.bmm(weighted.flatten(2), fine.transpose(1, 2))
            out[entry, block] = product.flatten(1)[:, :length]
    return out


def _moments(g: Tensor, dt_a: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    """sum_l g_l e^{z l}, and sum_l l g_l e^{z l} if asked for: g (batch, rows, L) → (batch, rows, N, 2) each."""
    batch, rows, length = g.shape
    modes = dt_a.shape[1]
    inner, outer = _split(length)
    zeroth = g.new_empty(batch, rows, modes, 2)
    first_moment = g.new_empty(zeroth.shape if first else 0)
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


def _conjugate(a: Tensor) -> Tensor:
    return a * a.new_tensor([1.0, -1.0])


@torch.library.custom_op("milkweed::diagonal_ssm_kernel", mutates_args=())
def diagonal_ssm_kernel(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
    """Sum c (batch, rows, N, 2) against the modes dt_a (rows, N, 2): (batch, rows, L)."""
    with without_autocast(c):
        return _sum_of_modes(2 * c, dt_a, length)


@diagonal_ssm_kernel.register_fake
def _(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
    return c.new_empty(*c.shape[:2], length)


@torch.library.custom_op("milkweed::diagonal_ssm_kernel_backward", mutates_args=())
def _kernel_backward(grad: Tensor, c: Tensor, dt_a: Tensor, need_dt_a: bool) -> tuple[Tensor, Tensor]:
    with without_autocast(grad):
        zeroth, first = _moments(grad, dt_a, need_dt_a)
    grad_c = 2 * _conjugate(zeroth)
    return grad_c, 2 * _conjugate(pairs.multiply(c, first)).sum(0) if need_dt_a else c.new_empty(0)


@_kernel_backward.register_fake
def _(grad: Tensor, c: Tensor, dt_a: Tensor, need_dt_a: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(c), dt_a.new_empty(dt_a.shape if need_dt_a else 0)


def _kernel_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor]:
    c, dt_a, _ = inputs
    return _kernel_backward(grad, c, dt_a, needed[1])


register_differentiable(diagonal_ssm_kernel, reference.diagonal_ssm_kernel, _kernel_gradients)


@torch.library.custom_op("milkweed::diagonal_ssm_state", mutates_args=())
def diagonal_ssm_state(u: Tensor, dt_a: Tensor) -> Tensor:
    """Run the modes dt_a (rows, N, 2) over u (batch, rows, L): (batch, rows, N, 2)."""
    with without_autocast(u):
        return _moments(u.flip(-1), dt_a, False)[0]


@diagonal_ssm_state.register_fake
def _(u: Tensor, dt_a: Tensor) -> Tensor:
    return u.new_empty(*u.shape[:2], dt_a.shape[1], 2)


@torch.library.custom_op("milkweed::diagonal_ssm_state_backward", mutates_args=())
def _state_backward(grad: Tensor, u: Tensor, dt_a: Tensor, need_u: bool, need_dt_a: bool) -> tuple[Tensor, Tensor]:
    conjugate = _conjugate(grad)
    with without_autocast(grad):
        grad_u = _sum_of_modes(conjugate, dt_a, u.shape[-1]).flip(-1) if need_u else u.new_empty(0)
        first = _moments(u.flip(-1), dt_a, True)[1] if need_dt_a else None
    return grad_u, u.new_empty(0) if first is None else _conjugate(pairs.multiply(conjugate, first)).sum(0)


@_state_backward.register_fake
def _(grad: Tensor, u: Tensor, dt_a: Tensor, need_u: bool, need_dt_a: bool) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape if need_u else 0), dt_a.new_empty(dt_a.shape if need_dt_a else 0)


def _state_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor]:
    return _state_backward(grad, *inputs, *needed)


register_differentiable(diagonal_ssm_state, reference.diagonal_ssm_state, _state_gradients)


@register_flop_formula(torch.ops.milkweed.diagonal_ssm_kernel)
def _kernel_flops(c_shape: Any, dt_a_shape: Any, length: int, **kwargs: Any) -> int:
    batch, rows, modes = (int(size) for size in c_shape[:3])
    return 4 * batch * rows * modes * int(length)


@register_flop_formula(torch.ops.milkweed.diagonal_ssm_kernel_backward)
def _kernel_backward_flops(grad_shape: Any, c_shape: Any, dt_a_shape: Any, need_dt_a: bool, **kwargs: Any) -> int:
    return _kernel_flops(c_shape, dt_a_shape, grad_shape[-1]) * (1 + int(need_dt_a))


@register_flop_formula(torch.ops.milkweed.diagonal_ssm_state)
def _state_flops(u_shape: Any, dt_a_shape: Any, **kwargs: Any) -> int:
    return _kernel_flops((u_shape[0], *dt_a_shape), dt_a_shape, u_shape[-1])


@register_flop_formula(torch.ops.milkweed.diagonal_ssm_state_backward)
def _state_backward_flops(
    grad_shape: Any, u_shape: Any, dt_a_shape: Any, need_u: bool, need_dt_a: bool, **kwargs: Any
) -> int:
    return _state_flops(u_shape, dt_a_shape) * (int(need_u) + 2 * int(need_dt_a))
