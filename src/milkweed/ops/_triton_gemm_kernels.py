# mypy: disable-error-code="no-untyped-def"
"""Kernels of products with block-diagonal matrices; `_triton_gemm` says what the arguments are.

``per`` and ``stride`` of each operand tell where the features of a block lie, see `_triton_gemm.Places`; ORDER is
"plain", "runs" or "scattered". Columns of a tile follow the order of memory, so that stores and loads are of
neighbours; the weight's rows, of which each is read as a whole, are then taken in that order too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from milkweed.ops._triton_language import dot


@triton.jit
def _places(block, column, size, per, stride, ORDER: tl.constexpr):
    if ORDER == "runs":
        place = column // per * stride + block * per + column % per
    elif ORDER == "scattered":
        index = block * size + column
        place = index % per * stride + index // per
    else:
        place = block * size + column
    return place


@triton.jit
def _features(column, size, per, ORDER: tl.constexpr):
    """Which feature of its block stands at a column."""
    return column % per * (size // per) + column // per if ORDER == "runs" else column


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # tanh(t) = 2 sigmoid(2 t) - 1
        z = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)  # NaN stays
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def _slope(z, ACTIVATION: tl.constexpr):
    """The activation's derivative."""
    if ACTIVATION == "gelu":
        slope = 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        slope = s + z * s * (1 - s) * (1.5957691216057308 * (1 + 0.134145 * z * z))
    elif ACTIVATION == "relu":
        slope = tl.where(z <= 0, 0.0, 1.0)
    else:
        s = tl.sigmoid(z)
        slope = s * (1 + z * (1 - s))
    return slope


@triton.jit
def _tile(
    x, weight, bias, block, step, row, rows, column, outputs, inputs,
    x_row, x_per, x_stride, w_block, w_output, w_input, out_per, out_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
    READS: tl.constexpr, WRITES: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Outputs of GROUP blocks that are ``step`` apart, equal numbers side by side: with the activation, and without."""
    if GROUP == 1:
        total = tl.zeros((ROWS, OUTPUTS), tl.float32)
        feature = _features(column, outputs, out_per, WRITES)
        for start in range(0, inputs, INPUTS):
            i = start + tl.arange(0, INPUTS)
            places = _places(block, i, inputs, x_per, x_stride, READS)
            mask = (row < rows)[:, None] & (i < inputs)[None, :]
            a = tl.load(x + row[:, None] * x_row + places[None, :], mask=mask, other=0.0)
            lower = _features(i, inputs, x_per, READS)
            w = weight + block.to(tl.int64) * w_block + lower.to(tl.int64)[:, None] * w_input
            w += feature.to(tl.int64)[None, :] * w_output
            b = tl.load(w, mask=(i < inputs)[:, None] & (column < outputs)[None, :], other=0.0)
            total = dot(a, b, total, PRECISION)
        if bias is not None:
            places = _places(block, column, outputs, out_per, out_stride, WRITES)
            total += tl.load(bias + places, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
        before = total.to(TYPE)
        after = activate(total, ACTIVATION).to(TYPE)
    else:
        # GROUP blocks, interleaved so that a store writes neighbours: the even and the odd ones are made apart, each as
        # such a tile of half as many blocks twice as far apart, and joined number by number.
        even, even_before = _tile(
            x, weight, bias, block, 2 * step, row, rows, column, outputs, inputs,
            x_row, x_per, x_stride, w_block, w_output, w_input, out_per, out_stride,
            ROWS, OUTPUTS, INPUTS, GROUP // 2, READS, WRITES, PRECISION, TYPE, ACTIVATION,
        )  # fmt: skip
        odd, odd_before = _tile(
            x, weight, bias, block + step, 2 * step, row, rows, column, outputs, inputs,
            x_row, x_per, x_stride, w_block, w_output, w_input, out_per, out_stride,
            ROWS, OUTPUTS, INPUTS, GROUP // 2, READS, WRITES, PRECISION, TYPE, ACTIVATION,
        )  # fmt: skip
        after = tl.reshape(tl.join(even, odd), (ROWS, OUTPUTS * GROUP))
        before = tl.reshape(tl.join(even_before, odd_before), (ROWS, OUTPUTS * GROUP))
    return after, before


@triton.jit
def multiply(
    x, weight, bias, out, kept, rows, blocks, outputs, inputs,
    x_row, x_per, x_stride, w_block, w_output, w_input, out_row, out_per, out_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
    READS: tl.constexpr, WRITES: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``out[b, k, q] = activation(sum_p weight[k, q, p] x[b, k, p] + bias)``, and what the activation is taken of."""
    # All tiles of a row tile run at about the same time, and read it from memory once.
    groups = blocks // GROUP
    index = tl.program_id(0)
    block = index % groups * GROUP
    index //= groups
    columns = tl.cdiv(outputs, OUTPUTS)
    column = index % columns * OUTPUTS + tl.arange(0, OUTPUTS)
    row = (index // columns).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    after, before = _tile(
        x, weight, bias, block, 1, row, rows, column, outputs, inputs,
        x_row, x_per, x_stride, w_block, w_output, w_input, out_per, out_stride,
        ROWS, OUTPUTS, INPUTS, GROUP, READS, WRITES, PRECISION, out.dtype.element_ty, ACTIVATION,
    )  # fmt: skip
    wide = tl.arange(0, OUTPUTS * GROUP)
    column = index % columns * OUTPUTS + wide // GROUP
    places = _places(block, column, outputs, out_per, out_stride, WRITES)
    if GROUP > 1:
        # Blocks are then next to each other, and so many that GROUP divides the stride between features.
        places = tl.multiple_of(places, GROUP) + wide % GROUP
    mask = (row < rows)[:, None] & (column < outputs)[None, :]
    tl.store(out + row[:, None] * out_row + places[None, :], after, mask=mask)
    if kept is not None:
        tl.store(kept + row[:, None] * out_row + places[None, :], before, mask=mask)


@triton.jit
def sum_outer(
    grad, x, out, rows, blocks, outputs, inputs, grad_row, grad_per, grad_stride, x_row, step,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, READS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out[i, k, q, p] = sum_b grad[b, k, q] x[b, k, p]`` over the ``step`` rows of part i."""
    index = tl.program_id(0)
    block = index % blocks
    index //= blocks
    columns = tl.cdiv(outputs, OUTPUTS)
    column = index % columns * OUTPUTS + tl.arange(0, OUTPUTS)
    index //= columns
    tiles = tl.cdiv(inputs, INPUTS)
    i = index % tiles * INPUTS + tl.arange(0, INPUTS)
    part = index // tiles
    upper = _places(block, column, outputs, grad_per, grad_stride, READS)
    lower = block * inputs + i
    total = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    last = tl.minimum((part + 1).to(tl.int64) * step, rows)
    for start in range(part.to(tl.int64) * step, last, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & (column < outputs)[None, :]
        a = tl.load(grad + row[:, None] * grad_row + upper[None, :], mask=mask, other=0.0)
        mask = (row < last)[:, None] & (i < inputs)[None, :]
        b = tl.load(x + row[:, None] * x_row + lower[None, :], mask=mask, other=0.0)
        total = dot(tl.trans(a), b, total, PRECISION)
    # The columns of the tile follow the places of grad; the weight's gradient goes back to the features' own order.
    feature = _features(column, outputs, grad_per, READS)
    w = out + ((part * blocks + block).to(tl.int64) * outputs + feature[:, None]) * inputs + i[None, :]
    tl.store(w, total.to(out.dtype.element_ty), mask=(column < outputs)[:, None] & (i < inputs)[None, :])


@triton.jit
def gather(
    grad, kept, out, sums, rows, blocks, outputs, grad_row, step,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr, EXACT: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Bring interleaved features (outputs, blocks) into the order (blocks, outputs), times the activation's slope."""
    # Part i takes ``step`` rows and writes their sum to row i of ``sums``. EXACT says that BLOCKS is blocks, which lets
    # the compiler see that neighbours are read.
    if EXACT:
        blocks = BLOCKS
    columns, groups = tl.cdiv(outputs, OUTPUTS), tl.cdiv(blocks, BLOCKS)
    index = tl.program_id(0)
    block, column = index % groups * BLOCKS, index // groups % columns * OUTPUTS
    part = index // (groups * columns)
    width = outputs * blocks
    # A tile is read with the blocks as the fastest axis and written with the features as the fastest: neighbours in
    # memory both times, with the transposition in between in registers.
    place = tl.arange(0, OUTPUTS * BLOCKS)
    inner = (column + place // BLOCKS) * blocks + block + place % BLOCKS
    is_inner = (column + place // BLOCKS < outputs) & (block + place % BLOCKS < blocks)
    outer = (block + place // OUTPUTS) * outputs + column + place % OUTPUTS
    is_outer = (block + place // OUTPUTS < blocks) & (column + place % OUTPUTS < outputs)
    total = tl.zeros((OUTPUTS * BLOCKS,), tl.float32)
    last = tl.minimum((part + 1).to(tl.int64) * step, rows)
    for start in range(part.to(tl.int64) * step, last, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & is_inner[None, :]
        value = tl.load(grad + row[:, None] * grad_row + inner[None, :], mask=mask, other=0.0)
        if kept is not None:
            z = tl.load(kept + row[:, None] * width + inner[None, :], mask=mask, other=0.0).to(tl.float32)
            value = (value.to(tl.float32) * _slope(z, ACTIVATION)).to(out.dtype.element_ty)
        total += tl.sum(value.to(tl.float32), 0)
        value = tl.permute(tl.reshape(value, (ROWS, OUTPUTS, BLOCKS)), (0, 2, 1))
        value = tl.reshape(value, (ROWS, OUTPUTS * BLOCKS))
        tl.store(out + row[:, None] * width + outer[None, :], value, mask=(row < last)[:, None] & is_outer[None, :])
    if sums is not None:
        tl.store(sums + part.to(tl.int64) * width + inner, total, mask=is_inner)
