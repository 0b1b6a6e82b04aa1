# mypy: disable-error-code="no-untyped-def"
"""Diagonal state space kernels in Triton: exponentials are made where they are multiplied.

README.md derives the split of the exponents.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from milkweed.ops import _triton_launch as gpu
from milkweed.ops._triton_configs import power_of_two
from milkweed.ops.ssm_kernel._operations import kernel_operation, state_operation

# The lags of a tile are i * columns + j. The largest tiles whose exponentials and sums do not spill from registers.
_COLUMNS = 64
_KERNEL_ROWS, _KERNEL_MODES = 64, 16
_MOMENT_ROWS, _MOMENT_MODES = 16, 32
# Products whose digits count: float32 numbers in three passes of TF32.
_PRECISION = "tf32x3"
# Programs that keep any GPU busy; with fewer rows than this, their lags are divided among programs.
_ENOUGH_PROGRAMS = 512


@triton.jit
def _turns_per_step(angle):
    # In units of 2^-64 of a turn: products of such an integer with steps overflow exactly where phases come round, so
    # no digit is lost however long the signal. The fraction has the 53 bits of float64, of which few are made.
    turns = angle.to(tl.float64) * 0.15915494309189535
    return ((turns - tl.floor(turns + 0.5)) * 18446744073709551616.0).to(tl.int64)


@triton.jit
def _exponential(decay, turns, steps):
    size = tl.exp(decay * steps.to(tl.float32))
    # The nearest quarter turn, and what is left: an eighth of a turn at most, for which short series are exact to
    # float32. A library's sine would prepare for any angle, in many times the registers.
    angle = ((turns * steps) >> 32).to(tl.int32)
    quarter = (angle + 536870912) >> 30
    x = (angle - (quarter << 30)).to(tl.float32) * 1.4629180792671596e-09
    z = x * x
    sine = x + x * z * (-0.16666655 + z * (0.008332166 + z * -0.00019515953))
    cosine = 1.0 - 0.5 * z + z * z * (0.04166665 + z * (-0.0013887511 + z * 2.4453346e-05))
    odd = (quarter & 1) != 0
    re, im = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    re = tl.where(((quarter + 1) & 2) != 0, -re, re)
    im = tl.where((quarter & 2) != 0, -im, im)
    return size * re, size * im


@triton.jit
def _load_modes(dt_a, row, modes, n):
    pair = dt_a + (row * modes + n) * 2
    decay = tl.load(pair, mask=n < modes, other=0.0)
    angle = tl.load(pair + 1, mask=n < modes, other=0.0)
    # An integer cannot say that the angle was not a number; the size can.
    return decay + 0.0 * angle, _turns_per_step(angle)


@triton.jit
def _sum_of_modes(
    c, dt_a, out, rows, modes, length, lag_zero, lag_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MODES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Lag l = coarse + fine: Re(c e^{z coarse} e^{z fine}) summed over the modes is two real products, of the real and
    # of the negated imaginary part of c e^{z coarse} with both parts of e^{z fine}. Exponentials never leave the
    # program.
    entry = tl.program_id(0).to(tl.int64)
    row = entry % rows
    fine = tl.arange(0, COLUMNS).to(tl.int64)
    coarse = tl.program_id(1).to(tl.int64) * (ROWS * COLUMNS) + tl.arange(0, ROWS).to(tl.int64) * COLUMNS
    lag = coarse[:, None] + fine[None, :]
    # Beyond the last lag a growing mode may overflow.
    fine, coarse = tl.minimum(fine, length - 1), tl.minimum(coarse, length - 1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, modes, MODES):
        n = start + tl.arange(0, MODES)
        decay, turns = _load_modes(dt_a, row, modes, n)
        pair = c + (entry * modes + n) * 2
        c_re = tl.load(pair, mask=n < modes, other=0.0)[None, :]
        c_im = tl.load(pair + 1, mask=n < modes, other=0.0)[None, :]
        fine_re, fine_im = _exponential(decay[:, None], turns[:, None], fine[None, :])
        coarse_re, coarse_im = _exponential(decay[None, :], turns[None, :], coarse[:, None])
        total = tl.dot(c_re * coarse_re - c_im * coarse_im, fine_re, total, input_precision=PRECISION)
        total = tl.dot(-c_re * coarse_im - c_im * coarse_re, fine_im, total, input_precision=PRECISION)
    tl.store(out + entry * length + lag_zero + lag * lag_stride, total, mask=lag < length)


@triton.jit
def _moments(
    g, dt_a, zeroth, first, rows, modes, length, lag_zero, lag_stride, tiles, tiles_each,
    FIRST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MODES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # sum_l g_l e^{z l} and sum_l l g_l e^{z l}: over the fine steps as products on matrix units, over the coarse ones
    # in registers. A program sums over its own tiles; the host adds up the parts, so that results do not vary from run
    # to run. Programs that read the same g are neighbours.
    blocks = tl.cdiv(modes, MODES)
    entry = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * MODES + tl.arange(0, MODES)
    part = tl.program_id(1)
    decay, turns = _load_modes(dt_a, entry % rows, modes, n)
    j = tl.arange(0, COLUMNS).to(tl.int64)
    # Beyond the last lag a growing mode may overflow, and infinity times zero is not zero.
    within = tl.minimum(j, length - 1)
    fine_re, fine_im = _exponential(decay[None, :], turns[None, :], within[:, None])
    position = within.to(tl.float32)[None, :]
    zeroth_re, zeroth_im = tl.zeros((MODES,), tl.float32), tl.zeros((MODES,), tl.float32)
    first_re, first_im = tl.zeros((MODES,), tl.float32), tl.zeros((MODES,), tl.float32)
    for tile in range(part * tiles_each, tl.minimum((part + 1) * tiles_each, tiles)):
        i = tile * (ROWS * COLUMNS) + tl.arange(0, ROWS).to(tl.int64) * COLUMNS
        lag = i[:, None] + j[None, :]
        block = tl.load(g + entry * length + lag_zero + lag * lag_stride, mask=lag < length, other=0.0)
        offset = tl.minimum(i, length - 1)
        re, im = _exponential(decay[None, :], turns[None, :], offset[:, None])
        sum_re = tl.dot(block, fine_re, input_precision=PRECISION)
        sum_im = tl.dot(block, fine_im, input_precision=PRECISION)
        zeroth_re += tl.sum(re * sum_re - im * sum_im, 0)
        zeroth_im += tl.sum(re * sum_im + im * sum_re, 0)
        if FIRST:
            # l = i + j: the coarse part i of the weight goes onto the sums that are there already.
            later = offset.to(tl.float32)[:, None]
            moment_re = tl.dot(block * position, fine_re, later * sum_re, input_precision=PRECISION)
            moment_im = tl.dot(block * position, fine_im, later * sum_im, input_precision=PRECISION)
            first_re += tl.sum(re * moment_re - im * moment_im, 0)
            first_im += tl.sum(re * moment_im + im * moment_re, 0)
    place = ((part.to(tl.int64) * (tl.num_programs(0) // blocks) + entry) * modes + n) * 2
    tl.store(zeroth + place, zeroth_re, mask=n < modes)
    tl.store(zeroth + place + 1, zeroth_im, mask=n < modes)
    if FIRST:
        tl.store(first + place, first_re, mask=n < modes)
        tl.store(first + place + 1, first_im, mask=n < modes)


def _direction(length: int, reverse: bool) -> tuple[int, int]:
    """Where lag 0 is, and how far from it lag 1."""
    return (length - 1, -1) if reverse else (0, 1)


def _kernel(c: Tensor, dt_a: Tensor, length: int, reverse: bool) -> Tensor:
    batch, rows, modes, _ = c.shape
    out = gpu.unwritten(c, batch, rows, length)
    if out.numel() == 0:
        return out
    tile = min(_KERNEL_ROWS, power_of_two(triton.cdiv(length, _COLUMNS)))
    gpu.launch(
        _sum_of_modes, (batch * rows, triton.cdiv(length, tile * _COLUMNS)),
        c.contiguous(), dt_a.contiguous(), out, rows, modes, length, *_direction(length, reverse),
        ROWS=tile, COLUMNS=_COLUMNS, MODES=_KERNEL_MODES,
        PRECISION=_PRECISION,
    )  # fmt: skip
    return out


def _both_moments(g: Tensor, dt_a: Tensor, first: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    batch, rows, length = g.shape
    modes = dt_a.shape[1]
    tile_modes = min(_MOMENT_MODES, power_of_two(modes))
    tiles = triton.cdiv(length, _MOMENT_ROWS * _COLUMNS)
    parts = min(tiles, triton.cdiv(_ENOUGH_PROGRAMS, max(batch * rows, 1)))
    zeroth = gpu.unwritten(g, parts, batch, rows, modes, 2)
    moment = gpu.unwritten(g, *zeroth.shape) if first else g.new_empty(0)
    if zeroth.numel():
        gpu.launch(
            _moments, (batch * rows * triton.cdiv(modes, tile_modes), parts),
            g.contiguous(), dt_a.contiguous(), zeroth, moment, rows, modes, length, *_direction(length, reverse),
            tiles, triton.cdiv(tiles, parts),
            FIRST=first, ROWS=_MOMENT_ROWS, COLUMNS=_COLUMNS, MODES=tile_modes, PRECISION=_PRECISION,
        )  # fmt: skip
    return zeroth.sum(0), moment.sum(0) if first else moment


diagonal_ssm_kernel = kernel_operation("diagonal_ssm_kernel_triton", _kernel, _both_moments)
diagonal_ssm_state = state_operation("diagonal_ssm_state_triton", _kernel, _both_moments)
