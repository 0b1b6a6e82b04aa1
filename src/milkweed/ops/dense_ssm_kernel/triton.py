# mypy: disable-error-code="no-untyped-def"
"""Dense state space kernels in Triton; README.md derives them.

Lags are ``i * 64 + j``. Column j is a^j b and row i is c a^(64 i): all 64 columns, or 16 rows, are taken through the
powers that are the bits of their numbers, and further rows come from the 16 before by one power more. As in `eager.py`,
powers are held less the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops import _triton_launch as gpu
from milkweed.ops._triton_configs import power_of_two
from milkweed.ops.dense_ssm_kernel import eager
from milkweed.ops.dense_ssm_kernel._operations import kernel_operation, state_operation

_COLUMN_BITS, _ROW_BITS = 6, 4
# Products whose errors are not amplified: float32 numbers in three passes of TF32.
_PRECISION = "tf32x3"
_COLUMNS, _ROWS = 1 << _COLUMN_BITS, 1 << _ROW_BITS


@triton.jit
def _matrix(matrices, index, rows, row, modes, N: tl.constexpr):
    n = tl.arange(0, N)
    place = ((index * rows + row) * modes + n[:, None]) * modes + n[None, :]
    return tl.load(matrices + place, mask=(n < modes)[:, None] & (n < modes)[None, :], other=0.0)


@triton.jit
def _store_matrix(matrices, index, rows, row, modes, values, N: tl.constexpr):
    n = tl.arange(0, N)
    place = ((index * rows + row) * modes + n[:, None]) * modes + n[None, :]
    tl.store(matrices + place, values, mask=(n < modes)[:, None] & (n < modes)[None, :])


# d_(k+1) = 2 d_k + d_k², where d_k = a^(2^k) - 1.
@triton.jit
def _square(powers, start, count, rows, modes, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = _matrix(powers, start, rows, row, modes, N)
    for index in range(start + 1, count):
        # In full float32: an error here is amplified by every square that follows.
        d = tl.dot(d, d, 2.0 * d, input_precision="ieee")
        _store_matrix(powers, index, rows, row, modes, d, N)


# ∂d_k += 2 ∂d_(k+1) + ∂d_(k+1) d_kᵀ + d_kᵀ ∂d_(k+1), from the last square down to a.
@triton.jit
def _square_adjoint(powers, grads, out, count, rows, modes, N: tl.constexpr, PRECISION: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = _matrix(grads, count - 1, rows, row, modes, N)
    for back in range(1, count):
        index = count - 1 - back
        turned = tl.trans(_matrix(powers, index, rows, row, modes, N))
        below = _matrix(grads, index, rows, row, modes, N) + 2.0 * total
        below = tl.dot(total, turned, below, input_precision=PRECISION)
        total = tl.dot(turned, total, below, input_precision=PRECISION)
    _store_matrix(out, 0, rows, row, modes, total, N)


# Columns a^j b, (N, COLUMNS). All start as b, and power k moves on those whose number has bit k: a tile cannot grow
# inside a program as it does in `eager.py`, and this takes no memory, for six full products where doubling has one.
@triton.jit
def _columns_of(powers, b, bits, rows, row, modes, N: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    n = tl.arange(0, N)
    j = tl.arange(0, COLUMNS)
    start = tl.load(b + row * modes + n, mask=n < modes, other=0.0)
    v = start[:, None] + tl.zeros((N, COLUMNS), tl.float32)
    for bit in range(bits):
        d = _matrix(powers, bit, rows, row, modes, N)
        v = tl.where(((j >> bit) & 1)[None, :] != 0, tl.dot(d, v, v, input_precision=PRECISION), v)
    return v


# K[i, j] = (c a^(64 i)) (a^j b): 16 rows by the bits of their numbers, then all of them 1024 lags further at each
# stride, by one power; a stride's product with the columns is contiguous in memory. KEEP stores the vectors for the
# backward pass instead of their products. ``lag_zero`` and ``lag_stride`` turn the lags round for the gradient of a
# signal.
@triton.jit
def _krylov(
    powers, b, c, out, kept_columns, kept_rows, batch, rows, modes, length, lag_zero, lag_stride,
    column_bits, row_bits, strides, stride_power,
    KEEP: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Programs of one row, which read the same powers, are neighbours.
    row = (tl.program_id(0) // batch).to(tl.int64)
    entry = (tl.program_id(0) % batch) * rows + row
    n, i, j = tl.arange(0, N), tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    v = _columns_of(powers, b, column_bits, rows, row, modes, N, COLUMNS, PRECISION)
    if KEEP:
        # Every program of the row writes the same numbers.
        tl.store(
            kept_columns + (row * modes + n[:, None]) * COLUMNS + j[None, :], v,
            mask=(n < modes)[:, None] & (j < COLUMNS)[None, :],
        )  # fmt: skip
    start = tl.load(c + entry * modes + n, mask=n < modes, other=0.0)
    r = start[None, :] + tl.zeros((ROWS, N), tl.float32)
    for bit in range(row_bits):
        d = _matrix(powers, column_bits + bit, rows, row, modes, N)
        r = tl.where(((i >> bit) & 1)[:, None] != 0, tl.dot(r, d, r, input_precision=PRECISION), r)
    d = _matrix(powers, stride_power, rows, row, modes, N)
    for stride in range(strides):
        if KEEP:
            place = ((entry * strides + stride) * ROWS + i[:, None]) * modes + n[None, :]
            tl.store(kept_rows + place, r, mask=(i < ROWS)[:, None] & (n < modes)[None, :])
        else:
            lag = (stride * ROWS + i)[:, None].to(tl.int64) * COLUMNS + j[None, :]
            product = tl.dot(r, v, input_precision=PRECISION)
            tl.store(out + entry * length + lag_zero + lag * lag_stride, product, mask=lag < length)
        r = tl.dot(r, d, r, input_precision=PRECISION)


# The adjoint of the row bits above ``least``, in reverse: r = where(bit, r + r d, r) gives t += where(bit, t, 0) dᵀ.
# Every row has then the adjoint of the vector it was made of; their sum is that of the vector all rows started from.
@triton.jit
def _undo_row_bits(powers, t, least, column_bits, row_bits, rows, row, modes,
                   ROWS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    i = tl.arange(0, ROWS)
    for back in range(row_bits - least):
        bit = row_bits - 1 - back
        d = tl.trans(_matrix(powers, column_bits + bit, rows, row, modes, N))
        moved = tl.where(((i >> bit) & 1)[:, None] != 0, t, 0.0)
        t = tl.dot(moved, d, t, input_precision=PRECISION)
    return t


# The transpose of c -> K: t (16, N) collects (signal tile) Vᵀ from the last stride to the first, moved on by the
# stride's power in between (Horner's rule), and then the bits of the rows are undone.
@triton.jit
def _state(
    powers, b, u, out, batch, rows, modes, length, column_bits, row_bits, strides, stride_power,
    N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // batch).to(tl.int64)
    entry = (tl.program_id(0) % batch) * rows + row
    n, i, j = tl.arange(0, N), tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    turned = tl.trans(_columns_of(powers, b, column_bits, rows, row, modes, N, COLUMNS, PRECISION))
    d = tl.trans(_matrix(powers, stride_power, rows, row, modes, N))
    t = tl.zeros((ROWS, N), tl.float32)
    for back in range(strides):
        lag = ((strides - 1 - back) * ROWS + i)[:, None].to(tl.int64) * COLUMNS + j[None, :]
        # The last entry of the signal has lag 0.
        g = tl.load(u + entry * length + length - 1 - lag, mask=lag < length, other=0.0)
        t = tl.dot(t, d, t, input_precision=PRECISION)
        t = tl.dot(g, turned, t, input_precision=PRECISION)
    t = _undo_row_bits(powers, t, 0, column_bits, row_bits, rows, row, modes, ROWS, N, PRECISION)
    tl.store(out + entry * modes + n, tl.sum(t, 0), mask=n < modes)


# With G the upstream gradient of one stride's lags (16, 64), R its rows, V the columns: ∂V += Rᵀ G, and the adjoint of
# the rows t_i = G_i Vᵀ + t_(i+1) (I + d)ᵀ runs backwards over the strides, which share one power: ∂d += R_iᵀ t_(i+1). A
# program goes through the batch in order, so that sums do not vary from run to run.
@triton.jit
def _chain_adjoint(
    powers, grad, kept_columns, kept_rows, grad_columns, grad_rows, grad_powers,
    batch, rows, modes, length, lag_zero, lag_stride, strides, stride_power,
    POWERS: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n, i, j = tl.arange(0, N), tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    columns_mask = (n < modes)[:, None] & (j < COLUMNS)[None, :]
    rows_mask = (i < ROWS)[:, None] & (n < modes)[None, :]
    columns_place = (row * modes + n[:, None]) * COLUMNS + j[None, :]
    turned = tl.trans(tl.load(kept_columns + columns_place, mask=columns_mask, other=0.0))
    d = tl.trans(_matrix(powers, stride_power, rows, row, modes, N))
    grad_v = tl.zeros((N, COLUMNS), tl.float32)
    grad_d = tl.zeros((N, N), tl.float32)
    for e in range(batch):
        entry = e * rows + row
        t = tl.zeros((ROWS, N), tl.float32)
        for back in range(strides):
            stride = strides - 1 - back
            lag = (stride * ROWS + i)[:, None].to(tl.int64) * COLUMNS + j[None, :]
            g = tl.load(grad + entry * length + lag_zero + lag * lag_stride, mask=lag < length, other=0.0)
            place = ((entry * strides + stride) * ROWS + i[:, None]) * modes + n[None, :]
            r = tl.trans(tl.load(kept_rows + place, mask=rows_mask, other=0.0))
            if POWERS:  # t is still that of the stride after
                grad_d = tl.dot(r, t, grad_d, input_precision=PRECISION)
            grad_v = tl.dot(r, g, grad_v, input_precision=PRECISION)
            t = tl.dot(t, d, t, input_precision=PRECISION)
            t = tl.dot(g, turned, t, input_precision=PRECISION)
        tl.store(grad_rows + (entry * ROWS + i[:, None]) * modes + n[None, :], t, mask=rows_mask)
    tl.store(grad_columns + columns_place, grad_v, mask=columns_mask)
    if POWERS and strides > 1:
        _store_matrix(grad_powers, stride_power, rows, row, modes, grad_d, N)


# The bits of rows and columns in reverse. For the gradient of row power k the adjoint is taken back to just after bit
# k, and multiplied by the rows as they were before it; both are recomputed for each bit, as no tile can be kept by
# index.
@triton.jit
def _bits_adjoint(
    powers, kept_columns, kept_rows, grad_columns, grad_rows, grad_powers, grad_b, grad_c,
    batch, rows, modes, column_bits, row_bits, strides,
    POWERS: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n, i, j = tl.arange(0, N), tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    columns_mask = (n < modes)[:, None] & (j < COLUMNS)[None, :]
    rows_mask = (i < ROWS)[:, None] & (n < modes)[None, :]
    if POWERS:
        for bit in range(row_bits):
            # What had been made before this bit are the rows whose numbers have lower bits only.
            earlier = i & ((1 << bit) - 1)
            grad_d = tl.zeros((N, N), tl.float32)
            for e in range(batch):
                entry = e * rows + row
                t = tl.load(grad_rows + (entry * ROWS + i[:, None]) * modes + n[None, :], mask=rows_mask, other=0.0)
                t = _undo_row_bits(
                    powers, t, bit + 1, column_bits, row_bits, rows, row, modes, ROWS, N, PRECISION
                )  # fmt: skip
                r = tl.load(
                    kept_rows + (entry * strides * ROWS + earlier[:, None]) * modes + n[None, :],
                    mask=rows_mask, other=0.0,
                )  # fmt: skip
                moved = tl.where(((i >> bit) & 1)[:, None] != 0, t, 0.0)
                grad_d = tl.dot(tl.trans(r), moved, grad_d, input_precision=PRECISION)
            _store_matrix(grad_powers, column_bits + bit, rows, row, modes, grad_d, N)
    for e in range(batch):
        entry = e * rows + row
        t = tl.load(grad_rows + (entry * ROWS + i[:, None]) * modes + n[None, :], mask=rows_mask, other=0.0)
        t = _undo_row_bits(powers, t, 0, column_bits, row_bits, rows, row, modes, ROWS, N, PRECISION)
        tl.store(grad_c + entry * modes + n, tl.sum(t, 0), mask=n < modes)
    columns = row * modes * COLUMNS + n[:, None] * COLUMNS
    t = tl.load(grad_columns + columns + j[None, :], mask=columns_mask, other=0.0)
    for back in range(column_bits):
        bit = column_bits - 1 - back
        moved = tl.where(((j >> bit) & 1)[None, :] != 0, t, 0.0)
        if POWERS:
            v = tl.load(kept_columns + columns + (j & ((1 << bit) - 1))[None, :], mask=columns_mask, other=0.0)
            grad_d = tl.dot(moved, tl.trans(v), input_precision=PRECISION)
            _store_matrix(grad_powers, bit, rows, row, modes, grad_d, N)
        d = tl.trans(_matrix(powers, bit, rows, row, modes, N))
        t = tl.dot(d, moved, t, input_precision=PRECISION)
    tl.store(grad_b + row * modes + n, tl.sum(t, 1), mask=n < modes)


class _Plan:
    """How many bits of a lag choose its column, its row among the first 16, and how often these rows move on."""

    def __init__(self, modes: int, length: int) -> None:
        bits = (length - 1).bit_length()
        self.column_bits = min(bits, _COLUMN_BITS)
        self.row_bits = min(bits - self.column_bits, _ROW_BITS)
        self.strides = triton.cdiv(length, _COLUMNS * _ROWS)
        # At least one, which is read where there is no stride and changes nothing.
        self.powers = max(self.column_bits + self.row_bits + (self.strides > 1), 1)
        self.tile = power_of_two(modes)

    @property
    def steps(self) -> tuple[int, int, int, int]:
        """Column bits, row bits, strides, and the power of a stride."""
        return self.column_bits, self.row_bits, self.strides, self.powers - 1

    @property
    def sizes(self) -> dict[str, Any]:
        """The constants of all kernels over lags."""
        return {"N": self.tile, "COLUMNS": _COLUMNS, "ROWS": _ROWS, "PRECISION": _PRECISION}

    @property
    def backward_warps(self) -> int:
        """Backward passes have twice the matrices in registers."""
        return 8 if self.tile == 64 else 4


def _powers(a: Tensor, plan: _Plan) -> Tensor:
    """a^(2^k) - 1 for all k: (powers, rows, N, N)."""
    rows, modes, _ = a.shape
    out = gpu.unwritten(a, plan.powers, rows, modes, modes)
    precise = eager.precise_powers(a, plan.powers)
    torch.stack(precise, out=out[: len(precise)])
    if len(precise) < plan.powers:
        gpu.launch(_square, (rows,), out, len(precise) - 1, plan.powers, rows, modes, N=plan.tile)
    return out


def _kernel(a: Tensor, b: Tensor, c: Tensor, length: int, reverse: bool) -> Tensor:
    batch, rows, modes = c.shape
    out = gpu.unwritten(c, batch, rows, length)
    if out.numel():
        plan = _Plan(modes, length)
        gpu.launch(
            _krylov, (batch * rows,), _powers(a, plan), b.contiguous(), c.contiguous(), out, out, out,
            batch, rows, modes, length, *_direction(length, reverse), *plan.steps, KEEP=False, **plan.sizes,
        )  # fmt: skip
    return out


def _direction(length: int, reverse: bool) -> tuple[int, int]:
    """Where lag 0 is, and how far from it lag 1."""
    return (length - 1, -1) if reverse else (0, 1)


def _final_state(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    batch, rows, length = u.shape
    out = gpu.unwritten(u, batch, rows, a.shape[-1])
    if out.numel():
        plan = _Plan(a.shape[-1], length)
        gpu.launch(
            _state, (batch * rows,), _powers(a, plan), b.contiguous(), u.contiguous(), out,
            batch, rows, a.shape[-1], length, *plan.steps, **plan.sizes,
        )  # fmt: skip
    return out


def _gradients(
    g: Tensor, a: Tensor, b: Tensor, c: Tensor, need_a: bool, need_b: bool, need_c: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(g * kernel(a, b, c)); that of a costs most, and is left out where it is not needed."""
    batch, rows, modes = c.shape
    length = g.shape[-1]
    # Contiguous, as the kernels write them: empty_like would keep a transposed argument's order.
    grad_a = gpu.unwritten(a, *a.shape) if need_a else a.new_empty(0)
    grad_b, grad_c = gpu.unwritten(b, *b.shape), gpu.unwritten(c, *c.shape)
    if g.numel() == 0:
        return grad_a.zero_(), grad_b.zero_(), grad_c
    plan = _Plan(modes, length)
    g, b, c = g.contiguous(), b.contiguous(), c.contiguous()
    powers, sizes = _powers(a, plan), plan.sizes
    columns = gpu.unwritten(c, rows, modes, _COLUMNS)
    vectors = gpu.unwritten(c, batch, rows, plan.strides * _ROWS, modes)
    lags = (length, *_direction(length, reverse))
    gpu.launch(
        _krylov, (batch * rows,), powers, b, c, g, columns, vectors,
        batch, rows, modes, *lags, *plan.steps, KEEP=True, **sizes,
    )  # fmt: skip
    grad_columns, grad_rows = gpu.unwritten(c, *columns.shape), gpu.unwritten(c, batch, rows, _ROWS, modes)
    # Of a single lag, the one power there is has no share.
    grad_powers = torch.zeros_like(powers) if length == 1 else gpu.unwritten(powers, *powers.shape)
    gpu.launch(
        _chain_adjoint, (rows,), powers, g, columns, vectors, grad_columns, grad_rows, grad_powers,
        batch, rows, modes, *lags, *plan.steps[2:],
        POWERS=need_a, num_warps=plan.backward_warps, **sizes,
    )  # fmt: skip
    gpu.launch(
        _bits_adjoint, (rows,), powers, columns, vectors, grad_columns, grad_rows, grad_powers, grad_b, grad_c,
        batch, rows, modes, *plan.steps[:3],
        POWERS=need_a, num_warps=plan.backward_warps, **sizes,
    )  # fmt: skip
    if need_a:
        gpu.launch(
            _square_adjoint, (rows,), powers, grad_powers, grad_a, plan.powers, rows, modes,
            N=plan.tile, PRECISION=_PRECISION, num_warps=plan.backward_warps,
        )  # fmt: skip
    return grad_a, grad_b, grad_c


dense_ssm_kernel = kernel_operation("dense_ssm_kernel_triton", _kernel, _gradients, eager._kernel_of_block)
dense_ssm_state = state_operation("dense_ssm_state_triton", _final_state, _kernel, _gradients, eager._state_of_block)
# A count of operations should not depend on the backend.
for _op, _flops in (
    (torch.ops.milkweed.dense_ssm_kernel_triton, eager._kernel_flops),
    (torch.ops.milkweed.dense_ssm_kernel_triton_backward, eager._kernel_backward_flops),
    (torch.ops.milkweed.dense_ssm_state_triton, eager._state_flops),
    (torch.ops.milkweed.dense_ssm_state_triton_backward, eager._state_backward_flops),
):
    register_flop_formula(_op, get_raw=True)(_flops)
