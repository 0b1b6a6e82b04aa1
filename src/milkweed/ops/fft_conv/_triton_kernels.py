# mypy: disable-error-code="no-untyped-def"
"""Kernels of the long convolution: Fourier transforms as products with small DFT matrices; README.md derives them.

A tile is (N1, N2 * N3) numbers in time, t = (t1 * N2 + t2) * N3 + t3, and (N2 * N1, KEPT) in frequency, with
k = k1 + N1 * (k2 + N2 * k3). N2 = 1 leaves the middle stage out; KEPT < N3 leaves out values of k3 whose frequencies a
kernel lacks. Real and imaginary parts are two tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Of the operands of products.
TYPES = {torch.float16: tl.float16, torch.float32: tl.float32}
# What a sign leaves of a float32's bits, and the bits of infinity.
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def _load_pair(re, im, row, column, rows: tl.constexpr, columns: tl.constexpr):
    """A (rows, columns) table of real and imaginary parts; row and column are what the strides would be."""
    place = tl.arange(0, rows)[:, None] * row + tl.arange(0, columns)[None, :] * column
    return tl.load(re + place), tl.load(im + place)


@triton.jit
def _times(ar, ai, br, bi):
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def _magnitude(x):
    """The bits of |x|: as integers they are in the order of the numbers, with infinity and then NaN above all."""
    return x.to(tl.int32, bitcast=True) & _MAGNITUDE


@triton.jit
def wrong(x):
    """Whether a float32 is infinite or NaN."""
    return _magnitude(x) >= _INFINITY


@triton.jit
def _scaled(re, im, greatest, TYPE: tl.constexpr):
    scale = 1.0
    if TYPE == tl.float16:  # noqa: SIM300
        size = greatest.to(tl.float32, bitcast=True)
        scale = tl.where(size > 0, size, 1.0)
        re, im = re / scale, im / scale
    return re.to(TYPE), im.to(TYPE), scale


@triton.jit
def _fit(re, im, TYPE: tl.constexpr):
    """Cast a tile to operands' dtype, divided by its greatest number if that is float16; the divisor comes third."""
    # A transform of N such numbers stays below N * √2, which float16 holds up to N = 16384, and what is too small for
    # it is too small to matter beside the greatest.
    greatest = 0
    if TYPE == tl.float16:  # noqa: SIM300
        greatest = tl.max(tl.maximum(_magnitude(re), _magnitude(im)))
    return _scaled(re, im, greatest, TYPE)


@triton.jit
def _fit_finite(re, im, TYPE: tl.constexpr):
    """`_fit` with zero for what is not finite; whether something was not comes last."""
    # It would spread over the whole tile and both of its signals.
    greatest = tl.max(tl.maximum(_magnitude(re), _magnitude(im)))
    found = greatest >= _INFINITY
    if found:
        re, im = tl.where(wrong(re), 0.0, re), tl.where(wrong(im), 0.0, im)
        greatest = tl.max(tl.maximum(_magnitude(re), _magnitude(im)))
    re, im, scale = _scaled(re, im, greatest, TYPE)
    return re, im, scale, found


@triton.jit
def _table_dot(fr, fi, zr, zi, PRECISION: tl.constexpr):
    """Complex product of a table with data, accumulated in float32."""
    re = tl.dot(fr, zr, input_precision=PRECISION)
    re = tl.dot(-fi, zi, re, input_precision=PRECISION)
    im = tl.dot(fr, zi, input_precision=PRECISION)
    im = tl.dot(fi, zr, im, input_precision=PRECISION)
    return re, im


@triton.jit
def _dot_table(zr, zi, fr, fi, PRECISION: tl.constexpr):
    """Complex product of data with a table, accumulated in float32."""
    re = tl.dot(zr, fr, input_precision=PRECISION)
    re = tl.dot(zi, -fi, re, input_precision=PRECISION)
    im = tl.dot(zi, fr, input_precision=PRECISION)
    im = tl.dot(zr, fi, im, input_precision=PRECISION)
    return re, im


@triton.jit
def _swap_leading(re, im, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """(A, B * C) to (B, A * C)."""
    re = tl.reshape(tl.permute(tl.reshape(re, (A, B, C)), (1, 0, 2)), (B, A * C))
    im = tl.reshape(tl.permute(tl.reshape(im, (A, B, C)), (1, 0, 2)), (B, A * C))
    return re, im


@triton.jit
def _inner_twiddles(twiddles2, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    """exp(-2πi k2 t3 / (N2 N3)) for the tile (k2, (k1, t3)): the same for every k1."""
    column = tl.arange(0, N1 * N3) % N3
    place = tl.arange(0, N2)[:, None] * N3 + column[None, :]
    return tl.load(twiddles2 + place).to(tl.float32), tl.load(twiddles2 + N2 * N3 + place).to(tl.float32)


@triton.jit
def _to_frequency(
    zr, zi, dft1, dft2, dft3, twiddles1, twiddles2,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Transform (ROWS, N2 * N3), the first rows of a tile whose other rows are zero; float32 in frequency."""
    # With t = t1 M + r, M = N2 N3, and k = k1 + N1 k': ω_N^(t k) = ω_N1^(t1 k1) ω_N^(r k1) ω_M^(r k'). Stage one sums
    # over t1, of which only ROWS are not padding; the twiddles follow, and transforms over r are left for every k1.
    fr, fi = _load_pair(dft1, dft1 + N1 * N1, N1, 1, N1, ROWS)
    ar, ai = _table_dot(fr, fi, zr, zi, PRECISION)
    tr, ti = _load_pair(twiddles1, twiddles1 + N1 * N2 * N3, N2 * N3, 1, N1, N2 * N3)
    ar, ai = _times(ar, ai, tr.to(tl.float32), ti.to(tl.float32))
    ar, ai = ar.to(zr.dtype), ai.to(zr.dtype)
    if N2 > 1:
        # The same once more with r = t2 N3 + t3. The axis that is summed over has to lead: (k1, t2, t3) to (t2, k1,
        # t3); it stays in front as (k2, k1, ·), an order that the spectrum has too, so that nothing is permuted back.
        ar, ai = _swap_leading(ar, ai, N1, N2, N3)
        gr, gi = _load_pair(dft2, dft2 + N2 * N2, N2, 1, N2, N2)
        br, bi = _table_dot(gr, gi, ar, ai, PRECISION)
        sr, si = _inner_twiddles(twiddles2, N1, N2, N3)
        br, bi = _times(br, bi, sr, si)
        ar = tl.reshape(br.to(zr.dtype), (N2 * N1, N3))
        ai = tl.reshape(bi.to(zr.dtype), (N2 * N1, N3))
    hr, hi = _load_pair(dft3, dft3 + N3 * KEPT, KEPT, 1, N3, KEPT)
    return _dot_table(ar, ai, hr, hi, PRECISION)


@triton.jit
def _to_time(
    cr, ci, dft1, dft2, dft3, twiddles1, twiddles2,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The first ROWS rows of the inverse transform times N, in float32: every step of the other one, conjugate."""
    hr, hi = _load_pair(dft3, dft3 + N3 * KEPT, 1, KEPT, KEPT, N3)
    br, bi = _dot_table(cr, ci, hr, -hi, PRECISION)
    if N2 > 1:
        br = tl.reshape(br, (N2, N1 * N3))
        bi = tl.reshape(bi, (N2, N1 * N3))
        sr, si = _inner_twiddles(twiddles2, N1, N2, N3)
        br, bi = _times(br, bi, sr, -si)
        gr, gi = _load_pair(dft2, dft2 + N2 * N2, N2, 1, N2, N2)
        br, bi = _table_dot(gr, -gi, br.to(cr.dtype), bi.to(cr.dtype), PRECISION)
        br, bi = _swap_leading(br, bi, N2, N1, N3)
    tr, ti = _load_pair(twiddles1, twiddles1 + N1 * N2 * N3, N2 * N3, 1, N1, N2 * N3)
    br, bi = _times(br, bi, tr.to(tl.float32), -ti.to(tl.float32))
    # A DFT matrix is symmetric: its first ROWS rows are its first ROWS columns.
    fr, fi = _load_pair(dft1, dft1 + N1 * N1, N1, 1, ROWS, N1)
    return _table_dot(fr, -fi, br.to(cr.dtype), bi.to(cr.dtype), PRECISION)


@triton.jit
def _frequency_places(N1: tl.constexpr, N2: tl.constexpr, KEPT: tl.constexpr):
    return tl.arange(0, N2 * N1)[:, None] * KEPT + tl.arange(0, KEPT)[None, :]


@triton.jit
def _signal(values, gate, place, mask, GATED: tl.constexpr):
    """Read gate * values, in float32."""
    loaded = tl.load(values + place, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        loaded *= tl.load(gate + place, mask=mask, other=0.0).to(tl.float32)
    return loaded


@triton.jit
def _finish(
    y, values, gate, skip, post, out, other, out_other, place, mask,
    GATED: tl.constexpr, SKIP: tl.constexpr, POST: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """Store post * (y + skip * v), and other * (y + skip * v) beside it, where mask says so."""
    if SKIP:
        y += skip * _signal(values, gate, place, mask, GATED)
    if OTHER:
        second = y * tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_other + place, second.to(out_other.dtype.element_ty), mask=mask)
    if POST:
        y *= tl.load(post + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _spread(
    values, gate, out, out_other, start, first, last, length, back, ahead, late, early,
    GATED: tl.constexpr, OTHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store NaN for every result t in first .. last - 1 of a signal that depends on something not finite."""
    # That is an input in t - back .. t + ahead, or, for t from ``late`` on and below ``early``, a number of the kernel.
    # The signal starts at ``start``. Whoever wrote finite results there before must be done.
    i = tl.arange(0, BLOCK)
    # How many inputs are not finite among those that result first - 1 depends on.
    count = 0
    end = tl.minimum(first + ahead, length)
    for begin in range(tl.maximum(first - 1 - back, 0), end, BLOCK):
        s = begin + i
        count += tl.sum(wrong(_signal(values, gate, start + s, s < end, GATED)).to(tl.int32))
    for begin in range(first, last, BLOCK):
        t = begin + i
        enters, leaves = t + ahead, t - 1 - back
        change = wrong(_signal(values, gate, start + enters, enters < length, GATED)).to(tl.int32)
        change -= wrong(_signal(values, gate, start + leaves, (leaves >= 0) & (leaves < length), GATED)).to(tl.int32)
        touched = (count + tl.cumsum(change, 0) > 0) | (t >= late) | (t < early)
        touched &= t < last
        tl.store(out + start + t, tl.full((BLOCK,), float("nan"), out.dtype.element_ty), mask=touched)
        if OTHER:
            nothing = tl.full((BLOCK,), float("nan"), out_other.dtype.element_ty)
            tl.store(out_other + start + t, nothing, mask=touched)
        count += tl.sum(change)


@triton.jit
def _reach_of_kernel(lags, channel, channels, length, conjugate, LAGS: tl.constexpr):
    """Find from which t on, and below which t, results depend on something in the kernel that is not finite."""
    # ``lags`` (2, channels) holds the first such lag, and the first of a reverse kernel. A conjugate spectrum has its
    # lags the other way round.
    late, early = length, 0
    if LAGS:
        turned = tl.where(conjugate < 0, channels, 0)
        late = tl.load(lags + turned + channel)
        early = length - tl.load(lags + channels - turned + channel)
    return late, early


@triton.jit
def _filtered(
    cr, ci, scale, spectrum_re, spectrum_im, spectrum_scale, conjugate, dft1, dft2, dft3, twiddles1, twiddles2,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply by a kernel's spectrum and go back to time; what to multiply the result by comes third."""
    kr, ki = tl.load(spectrum_re).to(tl.float32), tl.load(spectrum_im).to(tl.float32) * conjugate
    cr, ci = _times(cr, ci, kr, ki)
    cr, ci, second = _fit(cr, ci, TYPE)
    yr, yi = _to_time(cr, ci, dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, PRECISION)
    return yr, yi, scale * second * tl.load(spectrum_scale)


@triton.jit
def fused(
    u, pre, post, other, skip, out, out_other, spectrum_re, spectrum_im, scales, lags,
    dft1, dft2, dft3, twiddles1, twiddles2,
    batch, channels, length, chunks, step, lead, back, ahead, batch_stride, channel_stride, conjugate,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, OTHER: tl.constexpr, SKIP: tl.constexpr, LAGS: tl.constexpr,
    GUARD: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Convolve one channel of two signals, which are the real and the imaginary part of one."""
    # Chunk i reads the window that starts ``lead`` before i * step and keeps the ``step`` numbers from there. Result t
    # depends on the inputs t - back .. t + ahead.
    # Signals are the fastest axis of the grid: those that share a spectrum run at about the same time.
    pairs = tl.cdiv(batch, 2)
    pair = tl.program_id(0) % pairs
    rest = tl.program_id(0) // pairs
    channel, chunk = rest // chunks, rest % chunks
    t = tl.arange(0, ROWS)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    position = chunk * step - lead + t
    inside = (position >= 0) & (position < length)
    keep = inside & (t >= lead) & (t < lead + step)
    first = 2 * pair
    place = first.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + position
    has_second = first + 1 + tl.zeros_like(t) < batch
    # ifft(fft(v1 + i v2) K) = k∗v1 + i k∗v2 for a real kernel k: one transform serves two members of the batch.
    zr = _signal(u, pre, place, inside, PRE)
    zi = _signal(u, pre, place + batch_stride, inside & has_second, PRE)
    if GUARD:
        zr, zi, scale, found = _fit_finite(zr, zi, TYPE)
    else:
        zr, zi, scale = _fit(zr, zi, TYPE)
    cr, ci = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, PRECISION)
    k = channel.to(tl.int64) * (N1 * N2 * KEPT) + _frequency_places(N1, N2, KEPT)
    yr, yi, scale = _filtered(
        cr, ci, scale, spectrum_re + k, spectrum_im + k, scales + channel, conjugate,
        dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, TYPE, PRECISION,
    )  # fmt: skip
    yr, yi = yr * scale, yi * scale
    weight = tl.load(skip + channel).to(tl.float32) if SKIP else 0.0
    _finish(yr, u, pre, weight, post, out, other, out_other, place, keep, PRE, SKIP, POST, OTHER)
    second = place + batch_stride
    _finish(yi, u, pre, weight, post, out, other, out_other, second, keep & has_second, PRE, SKIP, POST, OTHER)
    if GUARD:
        late, early = _reach_of_kernel(lags, channel, channels, length, conjugate, LAGS)
        if found | (late < length) | (early > 0):
            tl.debug_barrier()  # the finite results are written
            start = first.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride
            begin, end = chunk * step, tl.minimum((chunk + 1) * step, length)
            for member in range(tl.minimum(batch - first, 2)):
                _spread(
                    u, pre, out, out_other, start + member * batch_stride, begin, end,
                    length, back, ahead, late, early, PRE, OTHER, BLOCK,
                )  # fmt: skip


@triton.jit
def spread(
    u, pre, found, lags, out, out_other,
    batch, channels, length, back, ahead, batch_stride, channel_stride, conjugate, tiles,
    PRE: tl.constexpr, OTHER: tl.constexpr, LAGS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What `fused` does at its end, for a split transform: ``found`` (channel, pair, tile) says what `outer_in` met."""
    pairs = tl.cdiv(batch, 2)
    pair, channel = tl.program_id(0) % pairs, tl.program_id(0) // pairs
    i = tl.arange(0, TILES)
    met = tl.max(tl.load(found + tl.program_id(0).to(tl.int64) * tiles + i, mask=i < tiles, other=0))
    late, early = _reach_of_kernel(lags, channel, channels, length, conjugate, LAGS)
    if (met > 0) | (late < length) | (early > 0):
        start = (2 * pair).to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride
        for member in range(tl.minimum(batch - 2 * pair, 2)):
            _spread(
                u, pre, out, out_other, start + member * batch_stride, 0, length, length, back, ahead, late, early,
                PRE, OTHER, BLOCK,
            )  # fmt: skip


@triton.jit
def _reach(found, opposite, position, length):
    """Find the last lag, for each position, of the products g_t v_(t - lag) that are not finite; -1 if all are."""
    # All lags from 0 to it count. ``found`` says where g is not finite, ``opposite`` where v is; exchanged, the lags
    # are those of a reverse kernel.
    return tl.maximum(tl.where(found, position, -1), tl.where(opposite, length - 1 - position, -1))


@triton.jit
def correlate(
    u, pre, grad, post, sum_re, sum_im, sum_skip, reach, dft1, dft2, dft3, twiddles1, twiddles2,
    batch, channels, length, chunks, step, lead, batch_stride, channel_stride, splits,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum G conj(V), of the spectra of g and v, over a share of the pairs and chunks of one channel; and g v itself."""
    # ``reach`` (2, programs) receives the last lag, and the last of a reverse kernel, that something not finite
    # reaches.
    channel, split = tl.program_id(0) % channels, tl.program_id(0) // channels
    pairs = tl.cdiv(batch, 2)
    t = tl.arange(0, ROWS)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    total_re = tl.zeros((N2 * N1, KEPT), tl.float32)
    total_im = tl.zeros((N2 * N1, KEPT), tl.float32)
    total_skip = 0.0
    forward, reverse = -1, -1
    for i in range(split, pairs * chunks, splits):
        first, chunk = 2 * (i % pairs), i // pairs
        position = chunk * step - lead + t
        inside = (position >= 0) & (position < length)
        keep = inside & (t >= lead) & (t < lead + step)
        has_second = first + 1 + tl.zeros_like(t) < batch
        place = first.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + position
        wr = _signal(u, pre, place, inside, PRE)
        wi = _signal(u, pre, place + batch_stride, inside & has_second, PRE)
        zr, zi, v_scale, v_found = _fit_finite(wr, wi, TYPE)
        vr, vi = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, PRECISION)
        hr = _signal(grad, post, place, keep, POST)
        hi = _signal(grad, post, place + batch_stride, keep & has_second, POST)
        total_skip += tl.sum(wr * hr) + tl.sum(wi * hi)
        zr, zi, g_scale, g_found = _fit_finite(hr, hi, TYPE)
        gr, gi = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, PRECISION)
        # Of paired signals, G conj(V) transforms back to corr(g1, v1) + corr(g2, v2) as its real part; what the pairing
        # mixes is the imaginary part, which `_Run.lags` drops.
        re, im = _times(gr, gi, vr, -vi)
        total_re += re * (v_scale * g_scale)
        total_im += im * (v_scale * g_scale)
        if v_found | g_found:
            # Read again: kept until here, the tiles would take registers that every program needs.
            start = first.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride
            for member in range(tl.minimum(batch - first, 2)):
                for begin in range(chunk * step, tl.minimum((chunk + 1) * step, length), BLOCK):
                    p = begin + tl.arange(0, BLOCK)
                    source, there = start + member * batch_stride + p, p < length
                    v_wrong = wrong(_signal(u, pre, source, there, PRE))
                    g_wrong = wrong(_signal(grad, post, source, there, POST))
                    forward = tl.maximum(forward, tl.max(_reach(g_wrong, v_wrong, p, length)))
                    reverse = tl.maximum(reverse, tl.max(_reach(v_wrong, g_wrong, p, length)))
    k = tl.program_id(0).to(tl.int64) * (N1 * N2 * KEPT) + _frequency_places(N1, N2, KEPT)
    tl.store(sum_re + k, total_re)
    tl.store(sum_im + k, total_im)
    tl.store(sum_skip + tl.program_id(0), total_skip)
    tl.store(reach + tl.program_id(0), forward)
    tl.store(reach + tl.num_programs(0) + tl.program_id(0), reverse)


@triton.jit
def _outer_twiddles(r, M: tl.constexpr, inner):
    """exp(-2πi k r / (M * inner)) for k < M: (M, columns). The index is exact, so no angle exceeds one turn."""
    index = (tl.arange(0, M)[:, None] * r[None, :]) % (M * inner)
    angle = index.to(tl.float32) * (-6.283185307179586 / (M * inner).to(tl.float32))
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def outer_in(
    u, pre, planes_re, planes_im, found, dft, batch, length, inner, batch_stride, channel_stride,
    ROWS: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr,
    PRE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first stage of a transform too long for one program: planes (channel, pair, k1, r) of M transforms left."""
    # ``found`` (channel, pair, tile) receives whether something was not finite; zero took its place.
    pairs, tiles = tl.cdiv(batch, 2), inner // COLUMNS
    plane = tl.program_id(0) // tiles
    pair, channel = plane % pairs, plane // pairs
    r = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    # t = t0 inner + r and k = k1 + M k', as inside a program, but the planes (k1, r) pass through memory: every program
    # takes a strip of columns r and all of its rows, so that the sum over t0 needs no other program.
    position = tl.arange(0, ROWS)[:, None] * inner + r[None, :]
    inside = position < length
    place = (2 * pair).to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + position
    zr = _signal(u, pre, place, inside, PRE)
    zi = _signal(u, pre, place + batch_stride, inside & (2 * pair + 1 + tl.zeros_like(position) < batch), PRE)
    zr, zi, scale, met = _fit_finite(zr, zi, TYPE)
    tl.store(found + tl.program_id(0), met.to(tl.int32))
    fr, fi = _load_pair(dft, dft + M * M, M, 1, M, ROWS)
    ar, ai = _table_dot(fr, fi, zr, zi, PRECISION)
    tr, ti = _outer_twiddles(r, M, inner)
    ar, ai = _times(ar, ai, tr, ti)
    k = (plane.to(tl.int64) * M + tl.arange(0, M)[:, None]) * inner + r[None, :]
    tl.store(planes_re + k, (ar * scale).to(planes_re.dtype.element_ty))
    tl.store(planes_im + k, (ai * scale).to(planes_im.dtype.element_ty))


@triton.jit
def outer_out(
    planes_re, planes_im, u, pre, post, other, skip, out, out_other, dft,
    batch, length, inner, batch_stride, channel_stride,
    ROWS: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, OTHER: tl.constexpr, SKIP: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The last stage of the inverse transform, with the gates and the skip."""
    pairs, tiles = tl.cdiv(batch, 2), inner // COLUMNS
    plane = tl.program_id(0) // tiles
    pair, channel = plane % pairs, plane // pairs
    r = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    k = (plane.to(tl.int64) * M + tl.arange(0, M)[:, None]) * inner + r[None, :]
    ar, ai = tl.load(planes_re + k).to(tl.float32), tl.load(planes_im + k).to(tl.float32)
    tr, ti = _outer_twiddles(r, M, inner)
    ar, ai = _times(ar, ai, tr, -ti)
    fr, fi = _load_pair(dft, dft + M * M, M, 1, ROWS, M)
    ar, ai, scale = _fit(ar, ai, TYPE)
    yr, yi = _table_dot(fr, -fi, ar, ai, PRECISION)
    yr, yi = yr * scale, yi * scale
    position = tl.arange(0, ROWS)[:, None] * inner + r[None, :]
    keep = position < length
    place = (2 * pair).to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + position
    weight = tl.load(skip + channel).to(tl.float32) if SKIP else 0.0
    _finish(yr, u, pre, weight, post, out, other, out_other, place, keep, PRE, SKIP, POST, OTHER)
    second, keep = place + batch_stride, keep & (2 * pair + 1 + tl.zeros_like(position) < batch)
    _finish(yi, u, pre, weight, post, out, other, out_other, second, keep, PRE, SKIP, POST, OTHER)


@triton.jit
def _load_planes(re, im, k, TYPE: tl.constexpr):
    return _fit(tl.load(re + k).to(tl.float32), tl.load(im + k).to(tl.float32), TYPE)


@triton.jit
def inner_filter(
    planes_re, planes_im, spectrum_re, spectrum_im, scales, dft1, dft2, dft3, twiddles1, twiddles2,
    pairs, outer, conjugate,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Filter plane (channel, pair, k1) in place with the spectrum of (channel, k1)."""
    pair = tl.program_id(0) % pairs
    rest = tl.program_id(0) // pairs
    k1, channel = rest % outer, rest // outer
    size: tl.constexpr = N1 * N2 * N3
    t = tl.arange(0, N1)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    plane = ((channel.to(tl.int64) * pairs + pair) * outer + k1) * size + t
    zr, zi, scale = _load_planes(planes_re, planes_im, plane, TYPE)
    cr, ci = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, N1, N1, N2, N3, KEPT, PRECISION)
    k = (channel.to(tl.int64) * outer + k1) * (N1 * N2 * KEPT) + _frequency_places(N1, N2, KEPT)
    yr, yi, scale = _filtered(
        cr, ci, scale, spectrum_re + k, spectrum_im + k, scales + channel, conjugate,
        dft1, dft2, dft3, twiddles1, twiddles2, N1, N1, N2, N3, KEPT, TYPE, PRECISION,
    )  # fmt: skip
    tl.store(planes_re + plane, (yr * scale).to(planes_re.dtype.element_ty))
    tl.store(planes_im + plane, (yi * scale).to(planes_im.dtype.element_ty))


@triton.jit
def inner_correlate(
    v_re, v_im, g_re, g_im, sum_re, sum_im, dft1, dft2, dft3, twiddles1, twiddles2, pairs, outer,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum G conj(V) over the pairs of plane (channel, k1)."""
    k1, channel = tl.program_id(0) % outer, tl.program_id(0) // outer
    size: tl.constexpr = N1 * N2 * N3
    t = tl.arange(0, N1)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    total_re = tl.zeros((N2 * N1, KEPT), tl.float32)
    total_im = tl.zeros((N2 * N1, KEPT), tl.float32)
    for pair in range(pairs):
        plane = ((channel.to(tl.int64) * pairs + pair) * outer + k1) * size + t
        zr, zi, v_scale = _load_planes(v_re, v_im, plane, TYPE)
        vr, vi = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, N1, N1, N2, N3, KEPT, PRECISION)
        zr, zi, g_scale = _load_planes(g_re, g_im, plane, TYPE)
        gr, gi = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, N1, N1, N2, N3, KEPT, PRECISION)
        re, im = _times(gr, gi, vr, -vi)
        total_re += re * (v_scale * g_scale)
        total_im += im * (v_scale * g_scale)
    k = tl.program_id(0).to(tl.int64) * (N1 * N2 * KEPT) + _frequency_places(N1, N2, KEPT)
    tl.store(sum_re + k, total_re)
    tl.store(sum_im + k, total_im)


@triton.jit
def inner_products(
    u, pre, grad, post, out, reach, batch, length, batch_stride, channel_stride,
    BLOCK: tl.constexpr, PRE: tl.constexpr, POST: tl.constexpr,
):  # fmt: skip
    """Sum g v over the batch and time of one channel, and find the ``reach`` (2, channels) of what is not finite."""
    channel = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    forward, reverse = tl.full((BLOCK,), -1, tl.int32), tl.full((BLOCK,), -1, tl.int32)
    for b in range(batch):
        for start in range(0, length, BLOCK):
            t = start + tl.arange(0, BLOCK)
            place = channel * channel_stride + tl.cast(b, tl.int64) * batch_stride + t
            v, g = _signal(u, pre, place, t < length, PRE), _signal(grad, post, place, t < length, POST)
            total += v * g
            forward = tl.maximum(forward, _reach(wrong(g), wrong(v), t, length))
            reverse = tl.maximum(reverse, _reach(wrong(v), wrong(g), t, length))
    tl.store(out + channel, tl.sum(total))
    tl.store(reach + channel, tl.max(forward))
    tl.store(reach + tl.num_programs(0) + channel, tl.max(reverse))
