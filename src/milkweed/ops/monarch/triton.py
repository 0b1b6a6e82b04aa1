"""Monarch multiply in Triton: one launch where a row tile fits, else two, the first writing where the second reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from milkweed.ops import _triton_launch as gpu
from milkweed.ops._common import register_differentiable
from milkweed.ops._triton_gemm import PLAIN, Places, float32_precision, gather, interleaved, multiply, sum_outer
from milkweed.ops.monarch import reference
from milkweed.ops.monarch._triton_kernels import both_factors
from milkweed.ops.monarch._triton_plan import Fused, fused_tile, rows_at_a_time


def _between(right: Tensor, left: Tensor) -> Places:
    """Where feature j = k * q_tot + q of the first factor goes: it is number j // l of block j % l of the second."""
    q, l, r = right.shape[1], left.shape[0], left.shape[2]  # noqa: E741 - the paper's letter
    if l == 1:
        return PLAIN
    return Places("scattered", l, r) if q % l else Places("runs", q // l, r)


@torch.library.custom_op("milkweed::monarch_mm_triton", mutates_args=())
def _forward(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    keep_middle: bool,
    keep_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    rows, blocks = x.shape[0], left.shape[0]
    out = gpu.unwritten(x, rows, blocks * left.shape[1])
    kept = gpu.unwritten(x, *out.shape) if keep_sum else None
    tile = fused_tile(right, left)
    step = 0 if tile else rows_at_a_time(x, right)
    middle = gpu.unwritten(x, rows if keep_middle else step, right.shape[0] * right.shape[1])
    if tile and rows:
        _in_one_launch(tile, x, right, left, bias, activation, out, middle if keep_middle else None, kept)
    elif rows:
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            lower = middle[part] if keep_middle else middle[: part.stop - start]
            multiply(x[part], right, PLAIN, _between(right, left), out=lower)
            multiply(
                lower,
                left,
                PLAIN,
                interleaved(blocks),
                bias=bias,
                activation=activation,
                out=out[part],
                kept=None if kept is None else kept[part],
            )
    return out, middle if keep_middle else x.new_empty(0), x.new_empty(0) if kept is None else kept


def _in_one_launch(
    tile: Fused,
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    out: Tensor,
    middle: Tensor | None,
    kept: Tensor | None,
) -> None:
    k, q, p = right.shape
    l, s, _ = left.shape  # noqa: E741 - the paper's letter
    gpu.launch(
        both_factors, (triton.cdiv(x.shape[0], tile.rows),),
        x, right, left, None if bias is None else bias.contiguous(), out, middle, kept,
        x.shape[0], k, p, l, s, q // l, *right.stride(), *left.stride(),
        ROWS=tile.rows, K=tile.k, L=tile.l, PER=tile.per, INPUTS=tile.inputs, OUTPUTS=tile.outputs,
        EXACT=(tile.k, tile.l, tile.per) == (k, l, q // l), PRECISION=float32_precision(), ACTIVATION=activation,
        num_warps=8, num_stages=2,
    )  # fmt: skip


@_forward.register_fake
def _(x: Tensor, right: Tensor, left: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, keep_middle, keep_sum = rest
    out = x.new_empty(x.shape[0], left.shape[0] * left.shape[1])
    middle = x.new_empty((x.shape[0], right.shape[0] * right.shape[1]) if keep_middle else 0)
    return out, middle, x.new_empty(out.shape if keep_sum else 0)


@torch.library.custom_op("milkweed::monarch_mm_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    middle: Tensor,
    kept: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_x, need_right, need_left, need_bias = needed
    x, blocks = x.contiguous(), left.shape[0]
    if (need_left and middle.ndim == 1) or (activation is not None and kept.ndim == 1):
        # A graph exported where no gradient was wanted kept nothing.
        _, middle, kept = _forward(x, right, left, bias, activation, True, activation is not None)
    grad_x, grad_right, grad_left, grad_bias = (x.new_empty(0) for _ in range(4))
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    before = None if activation is None else kept
    grad, sums = gather(grad, blocks, kept=before, activation=activation, sums=need_bias)
    if sums is not None:
        grad_bias = sums
    if need_left:
        grad_left = sum_outer(grad, middle, left.shape)
    if need_x or need_right:
        between = _between(right, left)
        lower = multiply(grad, left.mT)
        if need_right:
            grad_right = sum_outer(lower, x, right.shape, between)
        if need_x:
            grad_x = multiply(lower, right.mT, between)
    return grad_x, grad_right, grad_left, grad_bias


@_backward.register_fake
def _(grad: Tensor, x: Tensor, right: Tensor, left: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shapes = x.shape, right.shape, left.shape, grad.shape[1:]
    return tuple(x.new_empty(shape if need else 0) for shape, need in zip(shapes, rest[-1], strict=True))


def _plain(*inputs: Any) -> Tensor:
    return reference.monarch_mm(*inputs[:5])


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    wanted = [*needed, False][:4]  # without a bias there is no gradient of it
    return _backward(grad, *inputs[:5], *kept, wanted)[: len(needed)]


register_differentiable(_forward, _plain, _gradients)


def monarch_mm(
    x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Multiply by a Monarch matrix; see `milkweed.ops.monarch_mm`."""
    # Only the gradient of the left factor needs the first factor's output.
    learns = torch.is_grad_enabled()
    keep_sum = (
        activation is not None and learns and any(t.requires_grad for t in (x, right, left, bias) if t is not None)
    )
    return _forward(x, right, left, bias, activation, learns and left.requires_grad, keep_sum)[0]
