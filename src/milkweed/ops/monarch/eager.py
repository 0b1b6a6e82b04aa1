"""Monarch multiply over row blocks that stay in cache; README.md derives the layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import register_differentiable, rows_per_block, slices
from milkweed.ops._epilogue import finish
from milkweed.ops._gemm import linear, prefers_onednn
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.monarch import reference

# Input, middle and output of a block together: 512 rows at n = 4096 in float32, at or near the best of 128 .. 1024 on
# an AMD and on an Intel machine.
_BLOCK_BYTES = 24 * 2**20
_WIDE = 512


def _row_blocks(x: Tensor, right: Tensor, left: Tensor) -> Iterator[slice]:
    k, q, p = right.shape
    width = k * p + k * q + left.shape[0] * left.shape[1]
    step = rows_per_block(x.shape[0], width * x.element_size(), x.device, budget=_BLOCK_BYTES, least=64)
    return slices(x.shape[0], step)


class _Buffer:
    """Memory for one intermediate result, taken once and reused by every block: fresh pages cost as much as a copy."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def take(self, numel: int) -> Tensor:
        if self._memory.numel() < numel:
            self._memory = self._memory.new_empty(numel)
        return self._memory[:numel]

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        shape = (a.shape[0], a.shape[1], b.shape[2])
        return torch.bmm(a, b, out=self.take(math.prod(shape)).view(shape))


def _is_wide(x: Tensor, right: Tensor, left: Tensor) -> bool:
    """Whether oneDNN's product is the faster one here and blocks are wide enough, from 512 on, for `_wide_block`."""
    return (
        min(right.shape[1:]) >= _WIDE
        and min(left.shape[1:]) >= _WIDE
        and right.shape[1] % left.shape[0] == 0
        and prefers_onednn(x)
    )


@torch.library.custom_op("milkweed::monarch_mm", mutates_args=())
def _forward(x: Tensor, right: Tensor, left: Tensor, keep_middle: bool, wide: bool) -> tuple[Tensor, Tensor]:
    l, s, _ = left.shape  # noqa: E741 - the paper's letter
    out = on_huge_pages(x.new_empty(x.shape[0], s * l))
    middle = on_huge_pages(_empty_middle(x, right, keep_middle))
    buffers = _Buffer(x), _Buffer(x)
    multiply = _wide_block if wide else _block
    for rows in _row_blocks(x, right, left):
        kept = _of_block(middle, rows, right) if keep_middle else None
        multiply(x[rows], right, left, out[rows].view(-1, s, l), kept, buffers)
    return out, middle


def _block(
    x: Tensor, right: Tensor, left: Tensor, out: Tensor, kept: Tensor | None, buffers: tuple[_Buffer, _Buffer]
) -> None:
    """One block of rows with a feature-major middle: the permutation between the factors is then only a stride."""
    k, q, p = right.shape
    # middle (k, q, rows) in memory is (r, l, rows) too, as k q = r l: middle feature f is number f // l of left block
    # f mod l. Read as (l, rows, r) it is an operand of the second product without a copy.
    operand = x.reshape(-1, k, p).permute(1, 2, 0)
    target = buffers[0].take(k * q * x.shape[0]) if kept is None else kept
    middle = torch.bmm(right, operand, out=target.view(k, q, -1))
    result = buffers[1].bmm(_as_left_operand(middle, left, wide=False), left.transpose(1, 2))
    out.copy_(result.permute(1, 2, 0))


def _wide_block(
    x: Tensor, right: Tensor, left: Tensor, out: Tensor, kept: Tensor | None, buffers: tuple[_Buffer, _Buffer]
) -> None:
    """One block of rows, one product per matrix block, with a row-major middle (l, rows, r)."""
    k, q, p = right.shape
    l, _, r = left.shape  # noqa: E741 - the paper's letter
    rows = x.shape[0]
    middle = buffers[0].take(l * rows * r) if kept is None else kept
    middle = middle.view(l, rows, k, q // l)
    for i in range(k):
        product = linear(x[:, i * p : (i + 1) * p], right[i])
        middle[:, :, i].copy_(product.view(rows, q // l, l).permute(2, 0, 1))
    for i in range(l):
        out[:, :, i] = linear(middle[i].view(rows, r), left[i])


def _as_left_operand(middle: Tensor, left: Tensor, *, wide: bool) -> Tensor:
    """A block's middle, as either function above leaves it, as (l, rows, r)."""
    l, _, r = left.shape  # noqa: E741 - the paper's letter
    return middle.view(l, -1, r) if wide else middle.view(r, l, -1).permute(1, 2, 0)


def _empty_middle(x: Tensor, right: Tensor, keep: bool) -> Tensor:
    return x.new_empty(x.shape[0] * right.shape[0] * right.shape[1] if keep else 0)


def _of_block(middle: Tensor, rows: slice, right: Tensor) -> Tensor:
    """The part of the kept middle that belongs to a block of rows; blocks stand one after the other."""
    width = right.shape[0] * right.shape[1]
    return middle[rows.start * width : rows.stop * width]


@_forward.register_fake
def _(x: Tensor, right: Tensor, left: Tensor, keep_middle: bool, wide: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], left.shape[0] * left.shape[1]), _empty_middle(x, right, keep_middle)


@torch.library.custom_op("milkweed::monarch_mm_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    right: Tensor,
    left: Tensor,
    middle: Tensor,
    wide: bool,
    need_x: bool,
    need_right: bool,
    need_left: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    k, q, p = right.shape
    l, s, _ = left.shape  # noqa: E741 - the paper's letter
    if need_left and not middle.numel():
        # A graph exported where no gradient was wanted kept nothing.
        middle = _forward(x, right, left, True, wide)[1]
    precise = torch.promote_types(x.dtype, torch.float32)
    grad_x = on_huge_pages(x.new_empty(x.shape if need_x else 0))
    grad_right = torch.zeros(right.shape if need_right else 0, dtype=precise, device=x.device)
    grad_left = torch.zeros(left.shape if need_left else 0, dtype=precise, device=x.device)
    buffers = [_Buffer(x) for _ in range(4)]
    for rows in _row_blocks(x, right, left):
        # G (l, s, rows): ∂left = G middleᵀ and ∂middle = leftᵀ G, which is (l, r, rows), turned back to (k, q, rows).
        upper = grad[rows].reshape(-1, s, l).permute(2, 1, 0).contiguous()
        if need_left:
            operand = _as_left_operand(_of_block(middle, rows, right), left, wide=wide)
            _accumulate(grad_left, upper, operand, buffers[0])
        if need_x or need_right:
            lower = buffers[1].bmm(left.transpose(1, 2), upper).transpose(0, 1).reshape(k, q, -1)
            if need_right:
                _accumulate(grad_right, lower, x[rows].reshape(-1, k, p).transpose(0, 1), buffers[2])
            if need_x:
                result = buffers[3].bmm(lower.transpose(1, 2), right)
                grad_x[rows].view(-1, k, p).copy_(result.transpose(0, 1))
    return grad_x, grad_right.to(right.dtype), grad_left.to(left.dtype)


def _accumulate(total: Tensor, a: Tensor, b: Tensor, buffer: _Buffer) -> None:
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += buffer.bmm(a, b)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, right: Tensor, left: Tensor, middle: Tensor, wide: bool, *needed: bool
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape if need else 0) for t, need in zip((x, right, left), needed, strict=True))


def _plain(x: Tensor, right: Tensor, left: Tensor, *_: bool) -> Tensor:
    return reference.monarch_mm(x, right, left)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    x, right, left, _, wide = inputs
    return _backward(grad, x, right, left, *kept, wide, *needed)


register_differentiable(_forward, _plain, _gradients)


@register_flop_formula(torch.ops.milkweed.monarch_mm)
def _flops(x_shape: Any, right_shape: Any, left_shape: Any, keep_middle: bool, wide: bool, **kwargs: Any) -> int:
    return 2 * int(x_shape[0]) * (_volume(right_shape) + _volume(left_shape))


@register_flop_formula(torch.ops.milkweed.monarch_mm_backward)
def _backward_flops(
    grad_shape: Any,
    x_shape: Any,
    right_shape: Any,
    left_shape: Any,
    middle_shape: Any,
    wide: bool,
    need_x: bool,
    need_right: bool,
    need_left: bool,
    **kwargs: Any,
) -> int:
    right, left = _volume(right_shape), _volume(left_shape)
    total = need_left * left + (need_x or need_right) * left + (need_x + need_right) * right
    return 2 * int(x_shape[0]) * total


def _volume(shape: Any) -> int:
    return int(shape[0]) * int(shape[1]) * int(shape[2])


def monarch_mm(
    x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Multiply by a Monarch matrix; see `milkweed.ops.monarch_mm`."""
    # Only the gradient of the left factor needs the first factor's output.
    keep = torch.is_grad_enabled() and left.requires_grad
    out = _forward(x, right, left, keep, _is_wide(x, right, left))[0]
    return finish(out, bias, activation, in_place=True)
