"""Block-diagonal multiply over row blocks that stay in cache; see README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import register_differentiable, rows_per_block, slices
from milkweed.ops._epilogue import finish
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.block_diagonal import reference

# A block of rows, its input and its output together: of the size that suits the Monarch product, not tuned by itself.
_BLOCK_BYTES = 16 * 2**20


def _row_blocks(x: Tensor, width: int) -> Iterator[slice]:
    step = rows_per_block(x.shape[0], width * x.element_size(), x.device, budget=_BLOCK_BYTES, least=64)
    return slices(x.shape[0], step)


@torch.library.custom_op("milkweed::block_diagonal_mm", mutates_args=())
def _forward(x: Tensor, weight: Tensor) -> Tensor:
    k, q, p = weight.shape
    out = on_huge_pages(x.new_empty(x.shape[0], k * q))
    for rows in _row_blocks(x, k * (p + q)):
        block = x[rows].reshape(-1, k, p).transpose(0, 1)
        out[rows].view(-1, k, q).copy_(torch.bmm(block, weight.transpose(1, 2)).transpose(0, 1))
    return out


@_forward.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] * weight.shape[1])


@torch.library.custom_op("milkweed::block_diagonal_mm_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    k, q, p = weight.shape
    grad_x = on_huge_pages(x.new_empty(x.shape if need_x else 0))
    sums = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if need_weight else None
    for rows in _row_blocks(x, k * (p + q)):
        block = grad[rows].reshape(-1, k, q).transpose(0, 1)
        if need_x:
            grad_x[rows].view(-1, k, p).copy_(torch.bmm(block, weight).transpose(0, 1))
        if sums is not None:
            sums += torch.bmm(block.transpose(1, 2), x[rows].reshape(-1, k, p).transpose(0, 1))
    return grad_x, weight.new_empty(0) if sums is None else sums.to(weight.dtype)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else 0), weight.new_empty(weight.shape if need_weight else 0)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    return _backward(grad, *inputs, *needed)


register_differentiable(_forward, reference.block_diagonal_mm, _gradients)


@register_flop_formula(torch.ops.milkweed.block_diagonal_mm)
def _flops(x_shape: Any, weight_shape: Any, **kwargs: Any) -> int:
    k, q, p = weight_shape
    return 2 * int(x_shape[0]) * k * q * p


@register_flop_formula(torch.ops.milkweed.block_diagonal_mm_backward)
def _backward_flops(
    grad_shape: Any, x_shape: Any, weight_shape: Any, need_x: bool, need_weight: bool, **kwargs: Any
) -> int:
    return _flops(x_shape, weight_shape) * (int(need_x) + int(need_weight))


def block_diagonal_mm(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """Multiply by a block-diagonal matrix; see `milkweed.ops.block_diagonal_mm`."""
    return finish(_forward(x, weight), bias, activation, in_place=True)
