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


@triton.jit
def _load_pair(re, im, row, column, rows: tl.constexpr, columns: tl.constexpr):
    """A (rows, columns) table of real and imaginary parts; row and column are what the strides would be."""
    place = tl.arange(0, rows)[:, None] * row + tl.arange(0, columns)[None, :] * column
    return tl.load(re + place), tl.load(im + place)


@triton.jit
def _times(ar, ai, br, bi):
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def _fit(re, im, TYPE: tl.constexpr):
    """Cast a tile to the operands' dtype, divided by its greatest number if that is float16.

    A transform of N such numbers stays below N * √2, which float16 holds up to N = 16384, and what is too small for it
    is too small to matter beside the greatest.

    Returns:
        Both parts and what to multiply results by.
    """
    scale = 1.0
    if TYPE == tl.float16:  # noqa: SIM300
        greatest = tl.maximum(tl.max(tl.abs(re)), tl.max(tl.abs(im)))
        scale = tl.where(greatest > 0, greatest, 1.0)
        re, im = re / scale, im / scale
    return re.to(TYPE), im.to(TYPE), scale


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
    fr, fi = _load_pair(dft1, dft1 + N1 * N1, N1, 1, N1, ROWS)
    ar, ai = _table_dot(fr, fi, zr, zi, PRECISION)
    tr, ti = _load_pair(twiddles1, twiddles1 + N1 * N2 * N3, N2 * N3, 1, N1, N2 * N3)
    ar, ai = _times(ar, ai, tr.to(tl.float32), ti.to(tl.float32))
    ar, ai = ar.to(zr.dtype), ai.to(zr.dtype)
    if N2 > 1:
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
    u, pre, post, other, skip, out, out_other, spectrum_re, spectrum_im, scales,
    dft1, dft2, dft3, twiddles1, twiddles2,
    batch, length, chunks, step, lead, batch_stride, channel_stride, conjugate,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, OTHER: tl.constexpr, SKIP: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Convolve one channel of two signals, which are the real and the imaginary part of one.

    Chunk i reads the window that starts ``lead`` before i * step and keeps the ``step`` numbers from there.
    """
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
    zr = _signal(u, pre, place, inside, PRE)
    zi = _signal(u, pre, place + batch_stride, inside & has_second, PRE)
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


@triton.jit
def correlate(
    u, pre, grad, post, sum_re, sum_im, sum_skip, dft1, dft2, dft3, twiddles1, twiddles2,
    batch, channels, length, chunks, step, lead, batch_stride, channel_stride, splits,
    ROWS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, KEPT: tl.constexpr,
    PRE: tl.constexpr, POST: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum G conj(V), of the spectra of g and v, over a share of the pairs and chunks of one channel; and g v itself."""
    channel, split = tl.program_id(0) % channels, tl.program_id(0) // channels
    pairs = tl.cdiv(batch, 2)
    t = tl.arange(0, ROWS)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    total_re = tl.zeros((N2 * N1, KEPT), tl.float32)
    total_im = tl.zeros((N2 * N1, KEPT), tl.float32)
    total_skip = 0.0
    for i in range(split, pairs * chunks, splits):
        first, chunk = 2 * (i % pairs), i // pairs
        position = chunk * step - lead + t
        inside = (position >= 0) & (position < length)
        keep = inside & (t >= lead) & (t < lead + step)
        has_second = first + 1 + tl.zeros_like(t) < batch
        place = first.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + position
        wr = _signal(u, pre, place, inside, PRE)
        wi = _signal(u, pre, place + batch_stride, inside & has_second, PRE)
        zr, zi, v_scale = _fit(wr, wi, TYPE)
        vr, vi = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, PRECISION)
        hr = _signal(grad, post, place, keep, POST)
        hi = _signal(grad, post, place + batch_stride, keep & has_second, POST)
        total_skip += tl.sum(wr * hr) + tl.sum(wi * hi)
        zr, zi, g_scale = _fit(hr, hi, TYPE)
        gr, gi = _to_frequency(zr, zi, dft1, dft2, dft3, twiddles1, twiddles2, ROWS, N1, N2, N3, KEPT, PRECISION)
        re, im = _times(gr, gi, vr, -vi)
        total_re += re * (v_scale * g_scale)
        total_im += im * (v_scale * g_scale)
    k = tl.program_id(0).to(tl.int64) * (N1 * N2 * KEPT) + _frequency_places(N1, N2, KEPT)
    tl.store(sum_re + k, total_re)
    tl.store(sum_im + k, total_im)
    tl.store(sum_skip + tl.program_id(0), total_skip)


@triton.jit
def _outer_twiddles(r, M: tl.constexpr, inner):
    """exp(-2πi k r / (M * inner)) for k < M: (M, columns). The index is exact, so no angle exceeds one turn."""
    index = (tl.arange(0, M)[:, None] * r[None, :]) % (M * inner)
    angle = index.to(tl.float32) * (-6.283185307179586 / (M * inner).to(tl.float32))
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def outer_in(
    u, pre, planes_re, planes_im, dft, batch, length, inner, batch_stride, channel_stride,
    ROWS: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr,
    PRE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first stage of a transform too long for one program: planes (channel, pair, k1, r) of M transforms left."""
    pairs, tiles = tl.cdiv(batch, 2), inner // COLUMNS
    plane = tl.program_id(0) // tiles
    pair, channel = plane % pairs, plane // pairs
    r = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    position = tl.arange(0, ROWS)[:, None] * inner + r[None, :]
    inside = position < length
    place = (2 * pair).to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + position
    zr = _signal(u, pre, place, inside, PRE)
    zi = _signal(u, pre, place + batch_stride, inside & (2 * pair + 1 + tl.zeros_like(position) < batch), PRE)
    zr, zi, scale = _fit(zr, zi, TYPE)
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
    u, pre, grad, post, out, batch, length, batch_stride, channel_stride,
    BLOCK: tl.constexpr, PRE: tl.constexpr, POST: tl.constexpr,
):  # fmt: skip
    """Sum g v over the batch and time of one channel."""
    channel = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for b in range(batch):
        for start in range(0, length, BLOCK):
            t = start + tl.arange(0, BLOCK)
            place = channel * channel_stride + tl.cast(b, tl.int64) * batch_stride + t
            total += _signal(u, pre, place, t < length, PRE) * _signal(grad, post, place, t < length, POST)
    tl.store(out + channel, tl.sum(total))
