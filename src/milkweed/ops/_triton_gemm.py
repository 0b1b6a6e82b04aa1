"""Products with a block-diagonal matrix whose inputs and outputs are read and written in permuted places.

Both factors of a Monarch matrix, forward and backward, are this one product: a permutation between them is nothing but
the place where a number is written, so that no pass over memory is spent on it.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from milkweed.ops._triton_configs import tile_for


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the features of a row lie: feature i at ``(i % modulus) * stride + i // modulus``.

    Args:
        modulus: 1 with any stride leaves them in order.
        stride: Between neighbours.
    """

    modulus: int
    stride: int


IN_ORDER = Places(1, 1)


@triton.jit
def _place(index, modulus, stride):
    return (index % modulus) * stride + index // modulus


@triton.jit
def _multiply(
    x, weight, out, rows, outputs, inputs,
    x_row, x_modulus, x_stride, w_block, w_output, w_input, out_row, out_modulus, out_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Blocks are the fastest axis of the grid: those at neighbouring places are written at about the same time.
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, inputs, INPUTS):
        i = start + tl.arange(0, INPUTS)
        places = _place(block * inputs + i, x_modulus, x_stride)
        a = tl.load(
            x + row[:, None] * x_row + places[None, :], mask=(row < rows)[:, None] & (i < inputs)[None, :], other=0.0
        )
        w = weight + block.to(tl.int64) * w_block + i[:, None] * w_input + output[None, :] * w_output
        b = tl.load(w, mask=(i < inputs)[:, None] & (output < outputs)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    places = _place(block * outputs + output, out_modulus, out_stride)
    mask = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(out + row[:, None] * out_row + places[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _sum_outer(
    grad, x, out, rows, outputs, inputs,
    grad_row, grad_modulus, grad_stride, x_row, x_modulus, x_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    i = tl.program_id(2) * INPUTS + tl.arange(0, INPUTS)
    upper = _place(block * outputs + output, grad_modulus, grad_stride)
    lower = _place(block * inputs + i, x_modulus, x_stride)
    total = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for start in range(0, rows, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        a = tl.load(
            grad + row[None, :] * grad_row + upper[:, None],
            mask=(row < rows)[None, :] & (output < outputs)[:, None],
            other=0.0,
        )
        b = tl.load(
            x + row[:, None] * x_row + lower[None, :], mask=(row < rows)[:, None] & (i < inputs)[None, :], other=0.0
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    w = out + (block.to(tl.int64) * outputs + output[:, None]) * inputs + i[None, :]
    tl.store(w, total.to(out.dtype.element_ty), mask=(output < outputs)[:, None] & (i < inputs)[None, :])


def multiply(x: Tensor, weight: Tensor, reads: Places, writes: Places) -> Tensor:
    """Multiply rows by the blocks of a block-diagonal matrix: ``out[b, k, q] = sum_p weight[k, q, p] x[b, k, p]``.

    Args:
        x: (rows, k * p) with contiguous rows.
        weight: (k, q, p), of any strides.
        reads: Where the features of x lie.
        writes: Where those of the result go.

    Returns:
        (rows, k * q) in x's dtype, accumulated in float32.
    """
    blocks, outputs, inputs = weight.shape
    rows = x.shape[0]
    out = x.new_empty(rows, blocks * outputs)
    if out.numel() == 0:
        return out
    tile = tile_for("multiply", x.device, (rows, outputs, inputs))
    grid = (blocks, triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.columns))
    _multiply[grid](
        x, weight, out, rows, outputs, inputs,
        x.stride(0), reads.modulus, reads.stride,
        weight.stride(0), weight.stride(1), weight.stride(2),
        out.stride(0), writes.modulus, writes.stride,
        ROWS=tile.rows, OUTPUTS=tile.columns, INPUTS=tile.inner, PRECISION=_precision(x),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def sum_outer(grad: Tensor, x: Tensor, shape: torch.Size, grads: Places, reads: Places) -> Tensor:
    """Sum outer products over rows, block by block: ``out[k, q, p] = sum_b grad[b, k, q] x[b, k, p]``.

    Args:
        grad: (rows, k * q) with contiguous rows.
        x: (rows, k * p) with contiguous rows.
        shape: (k, q, p).
        grads: Where the features of grad lie.
        reads: Where those of x lie.

    Returns:
        (k, q, p) in x's dtype, accumulated in float32.
    """
    blocks, outputs, inputs = shape
    out = x.new_empty(shape)
    tile = tile_for("sum_outer", x.device, (outputs, inputs, x.shape[0]))
    grid = (blocks, triton.cdiv(outputs, tile.rows), triton.cdiv(inputs, tile.columns))
    _sum_outer[grid](
        grad, x, out, x.shape[0], outputs, inputs,
        grad.stride(0), grads.modulus, grads.stride,
        x.stride(0), reads.modulus, reads.stride,
        OUTPUTS=tile.rows, INPUTS=tile.columns, ROWS=tile.inner, PRECISION=_precision(x),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _precision(x: Tensor) -> str:
    """Of float32 products: TF32 where torch's own matrix products may use it."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
