"""Linear recurrences as a scan over chunks of time that run side by side; README.md derives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import register_differentiable, rows_per_block, slices, widest_dtype
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.recurrence import reference

# One block of rows of a and of x.
_BLOCK_BYTES = 8 * 2**20
# Numbers that one step should work on: its fixed cost is that of a few thousand.
_LEAST_NUMBERS = 16384
# Factors that are widened at a time.
_WIDENED = 65536


def _scan(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """The recurrence on (rows, L), from ``initial`` (rows,)."""
    rows, length = x.shape
    chunks = math.isqrt(length)
    if x.device.type == "cpu":
        chunks = max(1, min(chunks, _LEAST_NUMBERS // max(rows, 1)))
    steps = -(-length // chunks)

    def time_major(tensor: Tensor) -> Tensor:
        """(rows, L) to (steps, rows * chunks)."""
        # A copy in any case: the states are written over the inputs.
        padded = F.pad(tensor, (0, chunks * steps - length)).reshape(rows * chunks, steps)
        return padded.t().clone(memory_format=torch.contiguous_format)

    # Up to √L chunks run side by side: first all of them from zero, which gives what each adds by itself and, with the
    # product of its factors, the state before every chunk in turn; then once more from those states.
    decay, states = time_major(a), time_major(x)
    h = _chunk_starts(decay, states, initial)
    for decay_t, state_t in zip(decay.unbind(), states.unbind(), strict=True):
        h = state_t.addcmul_(decay_t, h)
    return states.t().reshape(rows, chunks * steps)[:, :length]


def _chunk_starts(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """The state before every chunk, (rows * chunks,), from factors and inputs (steps, rows * chunks)."""
    rows = len(initial)
    if inputs.shape[1] == rows:
        return initial
    # A first factor that is not finite reaches the end even from a start of zero.
    ends = torch.addcmul(inputs[0], decay[0], decay.new_zeros(()))
    for decay_t, input_t in zip(decay.unbind()[1:], inputs.unbind()[1:], strict=True):
        torch.addcmul(input_t, decay_t, ends, out=ends)
    # Roundings of a product of equal factors all have one sign, and a state takes over those of every chunk before it.
    wide = widest_dtype(decay)
    products, ends = (numbers.to(wide).view(rows, -1).t().contiguous() for numbers in (_product(decay, wide), ends))
    # A product may overflow where the state that it multiplies is zero, and so stays. Factors that are not finite show
    # in the ends.
    products.nan_to_num_(nan=0.0)
    starts = torch.cat([initial.to(wide)[None], ends[:-1]])
    for before, start, product in zip(starts.unbind(), starts.unbind()[1:], products.unbind(), strict=False):
        start.addcmul_(product, before)
    return starts.t().to(initial.dtype).flatten()


def _product(decay: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of (steps, numbers) over the steps, in parts whose copy in the wider dtype stays in cache."""
    product = decay.new_ones(decay.shape[1], dtype=dtype)
    for part in decay.split(max(1, _WIDENED // decay.shape[1])):
        product.mul_(part.prod(0, dtype=dtype))
    return product


def _row_blocks(like: Tensor) -> Iterator[slice]:
    rows, length = like.shape
    step = rows_per_block(rows, 2 * length * like.element_size(), like.device, budget=_BLOCK_BYTES)
    return slices(rows, step)


@torch.library.custom_op("milkweed::linear_recurrence", mutates_args=())
def linear_recurrence(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """Run a and x (rows, L) from ``initial`` (rows,): (rows, L)."""
    out = on_huge_pages(x.new_empty(x.shape))
    for block in _row_blocks(x):
        out[block] = _scan(a[block], x[block], initial[block])
    return out


@linear_recurrence.register_fake
def _(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("milkweed::linear_recurrence_backward", mutates_args=())
def _backward(grad: Tensor, a: Tensor, x: Tensor, initial: Tensor, need_a: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad_a = on_huge_pages(a.new_empty(a.shape if need_a else 0))
    grad_x, grad_initial = on_huge_pages(x.new_empty(x.shape)), initial.new_empty(initial.shape)
    for block in _row_blocks(x):
        # g_t = grad_t + a_{t+1} g_{t+1}: the same recurrence, backwards.
        later = F.pad(a[block, 1:], (0, 1)).flip(1)
        g = _scan(later, grad[block].flip(1), torch.zeros_like(initial[block])).flip(1)
        grad_x[block] = g
        grad_initial[block] = a[block, 0] * g[:, 0]
        if need_a:
            # States are computed again: cheaper than to keep them all between the passes.
            h = _scan(a[block, :-1], x[block, :-1], initial[block])
            torch.mul(g[:, 0], initial[block], out=grad_a[block, 0])
            torch.mul(g[:, 1:], h, out=grad_a[block, 1:])
    return grad_a, grad_x, grad_initial


@_backward.register_fake
def _(grad: Tensor, a: Tensor, x: Tensor, initial: Tensor, need_a: bool) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape if need_a else 0), x.new_empty(x.shape), initial.new_empty(initial.shape)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    return _backward(grad, *inputs, needed[0])


register_differentiable(linear_recurrence, reference.linear_recurrence, _gradients)


@register_flop_formula(torch.ops.milkweed.linear_recurrence)
def _flops(a_shape: Any, x_shape: Any, initial_shape: Any, **kwargs: Any) -> int:
    return 2 * int(x_shape[0]) * int(x_shape[1])


@register_flop_formula(torch.ops.milkweed.linear_recurrence_backward)
def _backward_flops(
    grad_shape: Any, a_shape: Any, x_shape: Any, initial_shape: Any, need_a: bool, **kwargs: Any
) -> int:
    return _flops(a_shape, x_shape, initial_shape) * (1 + int(need_a))
