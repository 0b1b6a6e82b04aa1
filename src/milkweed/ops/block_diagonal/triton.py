"""Block-diagonal multiply in Triton: one launch, tiles accumulated in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from milkweed.ops._common import register_differentiable
from milkweed.ops._triton_gemm import IN_ORDER, multiply, sum_outer
from milkweed.ops.block_diagonal import reference


@torch.library.custom_op("milkweed::block_diagonal_mm_triton", mutates_args=())
def block_diagonal_mm(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (batch, k * p) rows by blocks of (k, q, p)."""
    return multiply(x.contiguous(), weight, IN_ORDER, IN_ORDER)


@block_diagonal_mm.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] * weight.shape[1])


@torch.library.custom_op("milkweed::block_diagonal_mm_triton_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    grad, x = grad.contiguous(), x.contiguous()
    grad_x = multiply(grad, weight.mT, IN_ORDER, IN_ORDER) if need_x else x.new_empty(0)
    grad_weight = sum_outer(grad, x, weight.shape, IN_ORDER, IN_ORDER) if need_weight else weight.new_empty(0)
    return grad_x, grad_weight


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else 0), weight.new_empty(weight.shape if need_weight else 0)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    return _backward(grad, *inputs, *needed)


register_differentiable(block_diagonal_mm, reference.block_diagonal_mm, _gradients)
