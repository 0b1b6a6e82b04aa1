"""Block-diagonal multiply in Triton: one launch, tiles accumulated in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from milkweed.ops import _triton_launch as gpu
from milkweed.ops._common import register_differentiable
from milkweed.ops._triton_gemm import gather, multiply, sum_outer
from milkweed.ops.block_diagonal import reference


@torch.library.custom_op("milkweed::block_diagonal_mm_triton", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    out = gpu.unwritten(x, x.shape[0], weight.shape[0] * weight.shape[1])
    kept = gpu.unwritten(x, *out.shape) if keep_sum else None
    multiply(x.contiguous(), weight, bias=bias, activation=activation, out=out, kept=kept)
    return out, x.new_empty(0) if kept is None else kept


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, keep_sum: bool) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape[0], weight.shape[0] * weight.shape[1])
    return out, x.new_empty(out.shape if keep_sum else 0)


@torch.library.custom_op("milkweed::block_diagonal_mm_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    kept: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needed
    x = x.contiguous()
    if activation is not None and kept.ndim == 1:
        # A graph exported where no gradient was wanted kept nothing.
        kept = _forward(x, weight, bias, activation, True)[1]
    grad_x, grad_weight, grad_bias = (x.new_empty(0) for _ in range(3))
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    before = None if activation is None else kept
    grad, sums = gather(grad, 1, kept=before, activation=activation, sums=need_bias)
    if sums is not None:
        grad_bias = sums
    if need_x:
        grad_x = multiply(grad, weight.mT)
    if need_weight:
        grad_weight = sum_outer(grad, x, weight.shape)
    return grad_x, grad_weight, grad_bias


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shapes = x.shape, weight.shape, grad.shape[1:]
    return tuple(x.new_empty(shape if need else 0) for shape, need in zip(shapes, rest[-1], strict=True))


def _plain(*inputs: Any) -> Tensor:
    return reference.block_diagonal_mm(*inputs[:4])


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    wanted = [*needed, False][:3]  # without a bias there is no gradient of it
    return _backward(grad, *inputs[:4], *kept, wanted)[: len(needed)]


register_differentiable(_forward, _plain, _gradients)


def block_diagonal_mm(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """Multiply by a block-diagonal matrix; see `milkweed.ops.block_diagonal_mm`."""
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias) if t is not None)
    return _forward(x, weight, bias, activation, activation is not None and learns)[0]
