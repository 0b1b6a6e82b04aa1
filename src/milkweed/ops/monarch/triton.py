"""Monarch multiply in Triton: two launches, the first of which writes where the second reads in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from milkweed.ops._common import register_differentiable
from milkweed.ops._triton_gemm import IN_ORDER, Places, multiply, sum_outer
from milkweed.ops.monarch import reference

# With l * r features between the factors, feature j = k * q_tot + q of the first is number j // l of block j % l of
# the second; feature s of block l of the second is number s * l_tot + l of the output.


def _between(left: Tensor) -> Places:
    return Places(left.shape[0], left.shape[2])


def _outside(left: Tensor) -> Places:
    return Places(left.shape[1], left.shape[0])


@torch.library.custom_op("milkweed::monarch_mm_triton", mutates_args=())
def _forward(x: Tensor, right: Tensor, left: Tensor, keep_middle: bool) -> tuple[Tensor, Tensor]:
    middle = multiply(x.contiguous(), right, IN_ORDER, _between(left))
    out = multiply(middle, left, IN_ORDER, _outside(left))
    return out, middle if keep_middle else x.new_empty(0)


@_forward.register_fake
def _(x: Tensor, right: Tensor, left: Tensor, keep_middle: bool) -> tuple[Tensor, Tensor]:
    width = right.shape[0] * right.shape[1]
    middle = x.new_empty((x.shape[0], width) if keep_middle else 0)
    return x.new_empty(x.shape[0], left.shape[0] * left.shape[1]), middle


@torch.library.custom_op("milkweed::monarch_mm_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    right: Tensor,
    left: Tensor,
    middle: Tensor,
    need_x: bool,
    need_right: bool,
    need_left: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, x = grad.contiguous(), x.contiguous()
    grad_x, grad_right, grad_left = (tensor.new_empty(0) for tensor in (x, right, left))
    if need_left:
        if middle.ndim == 1:  # a graph exported where no gradient was wanted kept nothing
            middle = multiply(x, right, IN_ORDER, _between(left))
        grad_left = sum_outer(grad, middle, left.shape, _outside(left), IN_ORDER)
    if need_x or need_right:
        lower = multiply(grad, left.mT, _outside(left), IN_ORDER)
        if need_right:
            grad_right = sum_outer(lower, x, right.shape, _between(left), IN_ORDER)
        if need_x:
            grad_x = multiply(lower, right.mT, _between(left), IN_ORDER)
    return grad_x, grad_right, grad_left


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    right: Tensor,
    left: Tensor,
    middle: Tensor,
    need_x: bool,
    need_right: bool,
    need_left: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if need_x else 0),
        right.new_empty(right.shape if need_right else 0),
        left.new_empty(left.shape if need_left else 0),
    )


def _plain(x: Tensor, right: Tensor, left: Tensor, keep_middle: bool) -> Tensor:
    return reference.monarch_mm(x, right, left)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    return _backward(grad, *inputs[:3], *kept, *needed)


register_differentiable(_forward, _plain, _gradients)


def monarch_mm(x: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """Multiply by a Monarch matrix; see [`milkweed.ops.monarch_mm`][].

    Args:
        x: (batch, k * p).
        right: (k, q, p), same dtype as ``x``.
        left: (l, s, r) with l * r = k * q, same dtype as ``x``.

    Returns:
        (batch, s * l).
    """
    # Only the gradient of the left factor needs the first factor's output.
    return _forward(x, right, left, torch.is_grad_enabled() and left.requires_grad)[0]
