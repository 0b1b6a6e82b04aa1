"""Long convolution in Triton: transforms are products with DFT matrices, gates are fused; README.md derives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops import _triton_launch as gpu
from milkweed.ops._common import register_differentiable, slices
from milkweed.ops.fft_conv import _triton_kernels as kernels
from milkweed.ops.fft_conv import _triton_lag_kernels as lag_kernels
from milkweed.ops.fft_conv import eager
from milkweed.ops.fft_conv._triton_plan import (
    Plan,
    check_length,
    kept_columns,
    make_frozen_plan,
    make_plan,
    operands,
    outer_table,
    tables,
    take_columns,
)
from milkweed.ops.fft_conv.frozen import FrozenKernel

# Spectra and planes of the channels that are taken together.
_MEMORY = 2**30
# What the greatest number of a spectrum in float16 becomes.
_GREATEST = 2.0**15
# Columns of a split transform's first stage that a program takes.
_COLUMNS = 64
# Numbers that an inner product takes at a time.
_BLOCK = 2048
# Lags that a program takes of a kernel, and numbers that one takes of a signal in which something is not finite.
_LAGS, _SPREAD = 4096, 1024
# Stands for a lag that there is not; no length reaches it.
_NONE = 2**30
# Whether what is not finite is kept from signals that it has no part in; see `unguarded`.
_guard = [True]
# Programs for each multiprocessor that a sum over the batch is split into if there are too few channels.
_WAVES = 4


class Spectrum(NamedTuple):
    """A kernel's spectrum as programs hold it."""

    re: Tensor  # Real parts, channels first
    im: Tensor  # Imaginary parts
    scale: Tensor  # What to multiply those of each channel by
    # (2, channels), the first lag and the first negative lag that is not finite and was taken as zero; None if nothing
    # was.
    wrong: Tensor | None = None

    def of(self, channels: slice) -> Spectrum:
        """The spectrum of some of the channels."""
        wrong = None if self.wrong is None else self.wrong[:, channels].contiguous()
        return Spectrum(self.re[channels], self.im[channels], self.scale[channels], wrong)


@contextmanager
def unguarded() -> Iterator[None]:
    """Leave out the search for what is not finite where a program holds a whole window, to measure what it costs."""
    _guard.append(False)
    try:
        yield
    finally:
        _guard.pop()


class _Run:
    """The launches of one convolution, whose kernel has lags from 0 to ``back`` and from -1 to -``ahead``."""

    def __init__(self, u: Tensor, plan: Plan, back: int, ahead: int, columns: tuple[int, ...] | None = None) -> None:
        check_length(plan)
        self.batch, self.channels, self.length = u.shape
        self.pairs = -(-self.batch // 2)
        self.plan, self.device, self.dtype = plan, u.device, operands(u)
        self.back, self.ahead = min(back, self.length - 1), min(ahead, self.length - 1)
        self.precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
        self.columns = columns or tuple(range(plan.tile.factors[2]))
        self.tables = tables(plan.tile.factors, self.columns, self.dtype, u.device)

    @classmethod
    def with_kernels(cls, u: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, *, summing: bool = False) -> _Run:
        reverse = 0 if reverse_kernel is None else reverse_kernel.shape[-1]
        plan = make_plan(u.shape[-1], kernel.shape[-1], reverse, operands(u), u.device, summing)
        return cls(u, plan, kernel.shape[-1] - 1, reverse)

    @classmethod
    def with_spectrum(cls, u: Tensor, points: int, frequencies: int, back: int, ahead: int) -> _Run:
        plan = make_frozen_plan(u.shape[-1], points, operands(u), u.device)
        return cls(u, plan, back, ahead, kept_columns(plan, frequencies))

    def channel_blocks(self) -> Iterator[slice]:
        size = 4 if self.dtype == torch.float32 else 2
        planes = 0 if self.plan.outer == 1 else 2 * self.pairs
        # Complex spectra pass through float32 on their way.
        each = self.plan.points * (2 * size * (1 + planes) + 24)
        return slices(self.channels, max(1, min(self.channels, _MEMORY // each)))

    def spectrum(self, kernel: Tensor, reverse_kernel: Tensor | None) -> Spectrum:
        """The spectrum of some channels' kernels."""
        channels, points = kernel.shape[0], self.plan.points
        block = min(_LAGS, points)
        padded = gpu.unwritten(kernel, channels, points, dtype=torch.float32)
        wrong = gpu.unwritten(kernel, 2, channels, points // block, dtype=torch.int32)
        reverse = _or(reverse_kernel, kernel)
        gpu.launch(
            lag_kernels.arrange_lags, (channels * (points // block),),
            kernel, reverse, padded, wrong, points, kernel.shape[1], reverse.shape[1],
            *kernel.stride(), *reverse.stride(), NONE=_NONE, REVERSE=reverse_kernel is not None, BLOCK=block,
        )  # fmt: skip
        found = wrong[..., 0] if wrong.shape[-1] == 1 else wrong.amin(-1)
        return self.arrange(torch.fft.fft(padded, norm="forward"))._replace(wrong=found)

    def frozen_spectrum(self, half: Tensor) -> Spectrum:
        """The same from the lowest frequencies of a real kernel's transform, real pairs (channels, F, 2)."""
        points = self.plan.points
        low = torch.view_as_complex(half.float().contiguous()) / points
        natural = torch.zeros(len(low), points, dtype=low.dtype, device=low.device)
        natural[:, : low.shape[1]] = low
        mirrored = low[:, 1 : points // 2].conj_physical().flip(-1)
        natural[:, points - mirrored.shape[1] :] = mirrored
        return self.arrange(natural)

    def arrange(self, natural: Tensor) -> Spectrum:
        """A spectrum (channels, points), divided by the points, in the order in which programs hold it."""
        n1, n2, n3 = self.plan.tile.factors
        found = take_columns(natural.view(-1, n3, n2, n1, self.plan.outer), self.columns, 1).permute(0, 4, 2, 3, 1)
        re, im = found.real.contiguous(), found.imag.contiguous()
        scale = torch.ones(len(re), dtype=torch.float32, device=self.device)
        if self.dtype == torch.float16:
            greatest = torch.maximum(re.abs().amax((1, 2, 3, 4)), im.abs().amax((1, 2, 3, 4)))
            scale = torch.where(greatest > 0, greatest / _GREATEST, 1.0)
            re, im = (part.div_(scale[:, None, None, None, None]).half() for part in (re, im))
        return Spectrum(re, im, scale)

    def lags(self, re: Tensor, im: Tensor) -> Tensor:
        """From a spectrum in the programs' order to lags, negative ones at the end; what is imaginary falls away."""
        n1, n2, n3 = self.plan.tile.factors
        found = torch.complex(re, im).view(-1, self.plan.outer, n2, n1, n3).permute(0, 4, 2, 3, 1)
        return torch.fft.ifft(found.flatten(1)).real

    def filter(
        self,
        u: Tensor,
        spectrum: Spectrum,
        conjugate: bool,
        pre: Tensor | None,
        skip: Tensor | None,
        post: Tensor | None,
        out: Tensor,
        other: Tensor | None = None,
        out_other: Tensor | None = None,
    ) -> None:
        """Write post * (filtered + skip * v) with v = pre * u into out, and the same with other into out_other."""
        # A conjugate spectrum has its lags the other way round.
        sign, back, ahead = (-1.0, self.ahead, self.back) if conjugate else (1.0, self.back, self.ahead)
        channels, strides = u.shape[1], u.stride()[:2]
        signals = (_or(pre, u), _or(post, u), _or(other, u), _or(skip, u), out, _or(out_other, out))
        wrong = _or(spectrum.wrong, u)
        flags = {
            "PRE": pre is not None,
            "POST": post is not None,
            "OTHER": other is not None,
            "SKIP": skip is not None,
        }
        lags = {"LAGS": spectrum.wrong is not None, "BLOCK": _SPREAD}
        if self.plan.outer == 1:
            plan = self.plan
            lead = plan.tail if conjugate else plan.lead
            gpu.launch(
                kernels.fused, (self.pairs * plan.chunks * channels,),
                u, *signals, *spectrum[:3], wrong, *self.tables,
                self.batch, channels, self.length, plan.chunks, plan.step, lead, back, ahead, *strides, sign,
                ROWS=plan.rows, **self._tile(), **flags, **lags, GUARD=_guard[-1], **self._precision(),
                num_warps=plan.tile.warps,
            )  # fmt: skip
            return
        re, im, found = self._planes(u, pre)
        gpu.launch(
            kernels.inner_filter, (self.pairs * self.plan.outer * channels,),
            re, im, *spectrum[:3], *self.tables, self.pairs, self.plan.outer, sign,
            **self._tile(), **self._precision(), num_warps=self.plan.tile.warps,
        )  # fmt: skip
        gpu.launch(
            kernels.outer_out, self._outer_grid(u), re, im, u, *signals, self._outer_table(), *self._outer_sizes(u),
            **self._outer_tile(), **flags, **self._precision(), num_warps=4,
        )  # fmt: skip
        gpu.launch(
            kernels.spread, (self.pairs * channels,), u, signals[0], found, wrong, *signals[4:],
            self.batch, channels, self.length, back, ahead, *strides, sign, found.shape[-1],
            PRE=flags["PRE"], OTHER=flags["OTHER"], TILES=triton.next_power_of_2(found.shape[-1]), **lags, num_warps=4,
        )  # fmt: skip

    def correlate(
        self, u: Tensor, pre: Tensor | None, grad: Tensor, post: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum post * grad against pre * u over the batch: lags (channels, points), and lag 0 to full precision."""
        # Third come the last lag and the last negative lag that something not finite is part of, (2, channels).
        plan, channels = self.plan, u.shape[1]
        signals = (u, _or(pre, u), grad, _or(post, u))
        flags = {"PRE": pre is not None, "POST": post is not None}
        if plan.outer == 1:
            splits = self._splits(channels)
            sums = gpu.unwritten(u, 2, splits, channels, plan.points, dtype=torch.float32)
            products = gpu.unwritten(u, splits, channels, dtype=torch.float32)
            reach = gpu.unwritten(u, 2, splits, channels, dtype=torch.int32)
            gpu.launch(
                kernels.correlate, (channels * splits,), *signals, *sums, products, reach, *self.tables,
                self.batch, channels, self.length, plan.chunks, plan.step, plan.lead, *u.stride()[:2], splits,
                ROWS=plan.rows, **self._tile(), **flags, BLOCK=_SPREAD, **self._precision(), num_warps=plan.tile.warps,
            )  # fmt: skip
            if splits == 1:
                return self.lags(*sums[:, 0]), products[0], reach[:, 0]
            return self.lags(*sums.sum(1)), products.sum(0), reach.amax(1)
        sums = gpu.unwritten(u, 2, channels, plan.points, dtype=torch.float32)
        planes = (*self._planes(u, pre)[:2], *self._planes(grad, post)[:2])
        gpu.launch(
            kernels.inner_correlate, (plan.outer * channels,), *planes, *sums, *self.tables, self.pairs, plan.outer,
            **self._tile(), **self._precision(), num_warps=plan.tile.warps,
        )  # fmt: skip
        products = gpu.unwritten(u, channels, dtype=torch.float32)
        reach = gpu.unwritten(u, 2, channels, dtype=torch.int32)
        gpu.launch(
            kernels.inner_products, (channels,), *signals, products, reach, self.batch, self.length, *u.stride()[:2],
            BLOCK=_BLOCK, **flags, num_warps=8,
        )  # fmt: skip
        return self.lags(*sums), products, reach

    def _planes(self, u: Tensor, pre: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Both parts of the planes that the first stage leaves, and which of its programs met what is not finite."""
        shape = (u.shape[1], self.pairs, self.plan.outer, self.plan.inner)
        # Planes have no scale of their own, so they need the range of float32.
        dtype = torch.bfloat16 if self.dtype == torch.float16 else torch.float32
        re, im = (gpu.unwritten(u, *shape, dtype=dtype) for _ in range(2))
        found = gpu.unwritten(u, *shape[:2], self.plan.inner // _COLUMNS, dtype=torch.int32)
        gpu.launch(
            kernels.outer_in, self._outer_grid(u),
            u, _or(pre, u), re, im, found, self._outer_table(), *self._outer_sizes(u),
            **self._outer_tile(), PRE=pre is not None, **self._precision(), num_warps=4,
        )  # fmt: skip
        return re, im, found

    def _splits(self, channels: int) -> int:
        if self.device.type != "cuda":
            return 1
        wanted = _WAVES * torch.cuda.get_device_properties(self.device).multi_processor_count
        return max(1, min(-(-wanted // channels), self.pairs * self.plan.chunks))

    def _tile(self) -> dict[str, int]:
        n1, n2, n3 = self.plan.tile.factors
        return {"N1": n1, "N2": n2, "N3": n3, "KEPT": len(self.columns)}

    def _precision(self) -> dict[str, Any]:
        return {"TYPE": kernels.TYPES[self.dtype], "PRECISION": self.precision}

    def _outer_table(self) -> Tensor:
        return outer_table(self.plan.outer, self.dtype, self.device)

    def _outer_grid(self, u: Tensor) -> tuple[int]:
        return (self.plan.inner // _COLUMNS * self.pairs * u.shape[1],)

    def _outer_sizes(self, u: Tensor) -> tuple[int, ...]:
        return (self.batch, self.length, self.plan.inner, *u.stride()[:2])

    def _outer_tile(self) -> dict[str, int]:
        return {"ROWS": self.plan.outer_rows, "M": self.plan.outer, "COLUMNS": _COLUMNS}


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """A pointer for an argument that the kernel will not look at."""
    return stand_in if tensor is None else tensor


def _rows(tensor: Tensor | None, channels: slice) -> Tensor | None:
    """The channels of a kernel or a skip."""
    return None if tensor is None else tensor[channels]


def _of(tensor: Tensor | None, channels: slice) -> Tensor | None:
    """The channels of a signal (B, H, L)."""
    return None if tensor is None else tensor[:, channels]


@torch.library.custom_op("milkweed::fft_conv_triton", mutates_args=())
def fft_conv(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Convolve (B, H, L) signals; the arguments are those of `milkweed.ops.fft_conv`."""
    run = _Run.with_kernels(u, kernel, reverse_kernel)
    return _filter(
        run, u, lambda block: run.spectrum(kernel[block], _rows(reverse_kernel, block)), skip, pre_gate, post_gate
    )


def _filter(
    run: _Run,
    u: Tensor,
    spectrum: Callable[[slice], Spectrum],
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Filter block by block of channels, in u's memory order."""
    v = u.contiguous()
    skip, pre, post = (_contiguous(tensor) for tensor in (skip, pre_gate, post_gate))
    out = gpu.unwritten(v, *v.shape)
    for block in run.channel_blocks() if out.numel() else ():
        signals = (_of(pre, block), _rows(skip, block), _of(post, block))
        run.filter(v[:, block], spectrum(block), False, *signals, out[:, block])
    return _in_order_of(u, out)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _in_order_of(tensor: Tensor, computed: Tensor) -> Tensor:
    """A contiguous result in the memory order that the other backends give it, that of a tensor."""
    ordered = tensor if tensor.is_contiguous() else torch.empty_like(tensor)
    return computed if ordered.is_contiguous() else ordered.copy_(computed)


fft_conv.register_fake(eager.like_signal)


@torch.library.custom_op("milkweed::fft_conv_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    grads = [
        u.new_empty(0) if tensor is None or not need else gpu.unwritten(tensor, *tensor.shape)
        for tensor, need in zip(tensors, needed, strict=True)
    ]
    if u.numel():
        dy, v = grad.contiguous(), u.contiguous()
        weight, pre, post = (_contiguous(tensor) for tensor in (skip, pre_gate, post_gate))
        run = _Run.with_kernels(u, kernel, reverse_kernel)
        _signal_gradients(
            run,
            lambda block: run.spectrum(kernel[block], _rows(reverse_kernel, block)),
            [grads[0], grads[4], grads[5]],
            *(dy, v, weight, pre, post),
        )
        _kernel_gradients(grads, dy, v, pre, post, kernel, reverse_kernel, needed)
    else:
        for gradient in grads:
            gradient.zero_()
    in_order = [
        found if tensor is None or not need else _in_order_of(tensor, found)
        for tensor, found, need in zip(tensors, grads, needed, strict=True)
    ]
    return in_order[0], in_order[1], in_order[2], in_order[3], in_order[4], in_order[5]


def _signal_gradients(
    run: _Run,
    spectrum: Callable[[slice], Spectrum],
    grads: Sequence[Tensor],
    grad: Tensor,
    u: Tensor,
    skip: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
) -> None:
    """Write the gradients of u and of both gates, as far as there is memory for them in ``grads``."""
    grad_u, grad_pre, grad_post = grads
    need_u, need_pre, need_post = (bool(g.numel()) for g in grads)
    # Kernels write all of their signals with the strides of the whole: a result that nobody wants has them too.
    unwanted = gpu.unwritten(u, *u.shape) if need_pre and not need_u else grad_u
    for block in run.channel_blocks() if need_u or need_pre or need_post else ():
        found, weight = spectrum(block), _rows(skip, block)
        g, v, before, after = grad[:, block], u[:, block], _of(pre, block), _of(post, block)
        if need_u or need_pre:
            out = (grad_u if need_u else unwanted)[:, block]
            both = (v, grad_pre[:, block]) if need_pre else (None, None)
            run.filter(g, found, True, after, weight, before, out, *both)
        if need_post:
            run.filter(v, found, False, before, weight, g, grad_post[:, block])


def _kernel_gradients(
    grads: Sequence[Tensor],
    grad: Tensor,
    u: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    needed: Sequence[bool],
) -> None:
    """Write the gradients of the kernels and of the skip."""
    _, need_kernel, need_reverse, need_skip, _, _ = needed
    if not (need_kernel or need_reverse or need_skip):
        return
    run = _Run.with_kernels(u, kernel, reverse_kernel, summing=True)
    for block in run.channel_blocks():
        circle, products, reach = run.correlate(u[:, block], _of(pre, block), grad[:, block], _of(post, block))
        forward, reverse = (g[block] if need else reach for g, need in zip(grads[1:3], needed[1:3], strict=True))
        lags, reverse_lags = (g.shape[1] if need else 0 for g, need in zip(grads[1:3], needed[1:3], strict=True))
        tiles = -(-max(lags, reverse_lags) // _LAGS)
        gpu.launch(
            lag_kernels.store_lags, (len(circle) * tiles,),
            circle, reach.contiguous(), forward, reverse,
            len(circle), circle.shape[1], lags, reverse_lags, *circle.stride(), tiles,
            FORWARD=bool(need_kernel), REVERSE=bool(need_reverse), BLOCK=_LAGS,
        )  # fmt: skip
        if need_skip:
            grads[3][block] = products


_backward.register_fake(eager.like_inputs)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    return eager.present_gradients(_backward, grad, inputs, needed)


register_differentiable(fft_conv, eager.differentiable, _gradients)
register_flop_formula(torch.ops.milkweed.fft_conv_triton)(eager.count_flops)
register_flop_formula(torch.ops.milkweed.fft_conv_triton_backward)(eager.count_backward_flops)


def frozen_conv(
    u: Tensor,
    kernel: FrozenKernel,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Convolve with a frozen kernel, whose spectrum is arranged for the programs once."""
    spectrum, points = kernel.spectrum, kernel.points
    arranged: tuple[Tensor | None, ...] = (None, None, None)
    if not torch.compiler.is_compiling():  # a compiler's tensors must not be kept
        run = _Run.with_spectrum(u, points, spectrum.shape[1], *kernel.reach)
        key = (run.plan.outer, run.plan.tile.factors, run.dtype)
        arranged = kernel.layout(key, lambda: run.frozen_spectrum(spectrum))
    return _frozen_conv(u, spectrum, points, skip, pre_gate, post_gate, *arranged[:3], *kernel.reach)


@torch.library.custom_op("milkweed::frozen_conv_triton", mutates_args=())
def _frozen_conv(
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    re: Tensor | None,
    im: Tensor | None,
    scale: Tensor | None,
    back: int,
    ahead: int,
) -> Tensor:
    run = _Run.with_spectrum(u, points, spectrum.shape[1], back, ahead)
    found = None if re is None or im is None or scale is None else Spectrum(re, im, scale)
    found = found or run.frozen_spectrum(spectrum)
    return _filter(run, u, found.of, skip, pre_gate, post_gate)


_frozen_conv.register_fake(eager.like_signal)


def _frozen_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor]:
    # A frozen kernel is for inference: its derivative may be the plain one.
    arranged = [t for t in inputs[6:9] if t is not None]
    return [*eager.frozen_gradients(grad, (*inputs[:6], *inputs[9:]), kept, needed), *arranged]


register_differentiable(
    _frozen_conv, lambda *inputs: eager.frozen_differentiable(*inputs[:6], *inputs[9:]), _frozen_gradients
)
