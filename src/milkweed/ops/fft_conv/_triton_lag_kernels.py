# mypy: disable-error-code="no-untyped-def"
"""From a convolution's kernels to the circle of lags whose transform is taken, and from such a circle to gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from milkweed.ops.fft_conv._triton_kernels import wrong


@triton.jit
def arrange_lags(
    kernel, reverse, padded, first, points, lags, reverse_lags,
    kernel_channel, kernel_lag, reverse_channel, reverse_lag,
    NONE: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put both kernels on a circle of points, negative lags at its end and zero for what is not finite."""
    # ``first`` (2, channels, tiles) receives the first lag that is not finite, and the first of the reverse kernel, or
    # NONE.
    tiles = points // BLOCK
    channel, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    place = (tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    row = channel.to(tl.int64)
    values = tl.load(kernel + row * kernel_channel + place * kernel_lag, mask=place < lags, other=0.0).to(tl.float32)
    tl.store(first + tl.program_id(0), tl.min(tl.where(wrong(values), place, NONE)).to(tl.int32))
    if REVERSE:
        back = points - 1 - place
        source = reverse + row * reverse_channel + back * reverse_lag
        negative = tl.load(source, mask=back < reverse_lags, other=0.0).to(tl.float32)
        found = tl.min(tl.where(wrong(negative), back + 1, NONE)).to(tl.int32)
        values = tl.where(place < lags, values, negative)
    else:
        found = NONE
    tl.store(first + tl.num_programs(0) + tl.program_id(0), found)
    tl.store(padded + row * points + place, tl.where(wrong(values), 0.0, values))


@triton.jit
def store_lags(
    circle, reach, grad, grad_reverse, channels, points, lags, reverse_lags, circle_channel, circle_lag, tiles,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take the gradients of both kernels from a circle of lags; those up to ``reach`` (2, channels) become NaN."""
    channel, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = channel.to(tl.int64)
    i = (tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    if FORWARD:
        values = tl.load(circle + row * circle_channel + i * circle_lag, mask=i < lags, other=0.0)
        values = tl.where(i <= tl.load(reach + channel), float("nan"), values)
        tl.store(grad + row * lags + i, values.to(grad.dtype.element_ty), mask=i < lags)
    if REVERSE:
        source = circle + row * circle_channel + (points - 1 - i) * circle_lag
        values = tl.load(source, mask=i < reverse_lags, other=0.0)
        values = tl.where(i + 1 <= tl.load(reach + channels + channel), float("nan"), values)
        tl.store(grad_reverse + row * reverse_lags + i, values.to(grad_reverse.dtype.element_ty), mask=i < reverse_lags)
