# mypy: disable-error-code="no-untyped-def"
"""Both factors of a Monarch matrix in one kernel; README.md says for which sizes."""

from __future__ import annotations

import triton
import triton.language as tl

from milkweed.ops._triton_gemm_kernels import activate
from milkweed.ops._triton_language import dot


@triton.jit
def both_factors(
    x, right, left, bias, out, middle, kept, rows, k, p, l, s, per,  # noqa: E741 - the paper's letter
    right_block, right_output, right_input, left_block, left_output, left_input,
    ROWS: tl.constexpr, K: tl.constexpr, L: tl.constexpr, PER: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Multiply ROWS rows: all blocks of a factor in one batched product, and the rows between in registers."""
    # Feature ``j * l + i`` of a block of ``right`` is number ``block * per + j`` of block i of ``left``. K, L and PER
    # are k, l and per padded to powers of two, with zeros; EXACT says that they are the same, which lets the compiler
    # see that neighbours are read and written.
    # Both products are batched, over the blocks: (k, rows, p) · (k, p, q) and (l, rows, r) · (l, r, s).
    if EXACT:
        k, l, per = K, L, PER  # noqa: E741 - the paper's letter
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.arange(0, K)[:, None, None]
    column = tl.arange(0, PER * L)
    feature = (column // L * l + column % L)[None, None, :]
    is_feature = ((column // L < per) & (column % L < l))[None, None, :]
    total = tl.zeros((K, ROWS, PER * L), tl.float32)
    for start in range(0, p, INPUTS):
        i = start + tl.arange(0, INPUTS)
        inside = (block < k) & (row < rows)[None, :, None] & (i < p)[None, None, :]
        a = tl.load(x + row[None, :, None] * (k * p) + block * p + i[None, None, :], mask=inside, other=0.0)
        w = right + block.to(tl.int64) * right_block + feature.to(tl.int64) * right_output
        w += i.to(tl.int64)[None, :, None] * right_input
        b = tl.load(w, mask=(block < k) & is_feature & (i < p)[None, :, None], other=0.0)
        total = dot(a, b, total, PRECISION)
    # Step 2 of README.md in registers: (k, rows, per, l) to (l, rows, k, per), as number j of block i comes from
    # feature j l + i of every right block in turn.
    between = tl.permute(tl.reshape(total.to(x.dtype.element_ty), (K, ROWS, PER, L)), (3, 1, 0, 2))
    between = tl.reshape(between, (L, ROWS, K * PER))
    block = tl.arange(0, L)[:, None, None]
    number = tl.arange(0, K * PER)
    inner = number // PER * per + number % PER
    is_inner = (number // PER < k) & (number % PER < per)
    if middle is not None:
        place = row[None, :, None] * (l * k * per) + block * (k * per) + inner[None, None, :]
        tl.store(middle + place, between, mask=(block < l) & (row < rows)[None, :, None] & is_inner[None, None, :])
    for start in range(0, s, OUTPUTS):
        o = start + tl.arange(0, OUTPUTS)
        w = left + block.to(tl.int64) * left_block + inner.to(tl.int64)[None, :, None] * left_input
        w += o.to(tl.int64)[None, None, :] * left_output
        b = tl.load(w, mask=(block < l) & is_inner[None, :, None] & (o < s)[None, None, :], other=0.0)
        y = dot(between, b, tl.zeros((L, ROWS, OUTPUTS), tl.float32), PRECISION)
        # Output o of block i goes to o l + i: the blocks become the fastest axis, so that neighbours are stored.
        y = tl.reshape(tl.permute(y, (1, 2, 0)), (ROWS, OUTPUTS * L))
        wide = tl.arange(0, OUTPUTS * L)
        target = (start + wide // L) * l + wide % L
        valid = (start + wide // L < s) & (wide % L < l)
        mask = (row < rows)[:, None] & valid[None, :]
        if bias is not None:
            y += tl.load(bias + target, mask=valid, other=0.0).to(tl.float32)[None, :]
        if kept is not None:
            tl.store(kept + row[:, None] * (s * l) + target[None, :], y.to(out.dtype.element_ty), mask=mask)
        y = activate(y, ACTIVATION).to(out.dtype.element_ty)
        tl.store(out + row[:, None] * (s * l) + target[None, :], y, mask=mask)
