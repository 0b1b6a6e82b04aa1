"""Long convolution by FFT over blocks of channels that stay in cache; README.md derives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import compute_dtype, register_differentiable, rows_per_block
from milkweed.ops._memory import on_huge_pages

# One padded signal block; its spectrum and the inverse transform come on top. Measured best of 1 .. 8 MiB.
_BLOCK_BYTES = 4 * 2**20
# Channels taken together at least: a (B, L, H) signal viewed as (B, H, L) is then read in whole cache lines.
_LEAST_CHANNELS = 16


def fft_length(least: int) -> int:
    """Find the shortest even length with prime factors 2, 3 and 5 only, which FFTs are fast at.

    Args:
        least: The length needed.

    Returns:
        The length to use.
    """
    best = 1 << max(least - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-least // three)
            best = min(best, three * max(2, 1 << (rest - 1).bit_length()))
            three *= 3
        five *= 5
    return best


def least_points(length: int, lags: int, reverse_lags: int) -> int:
    """Count the points that a circular convolution needs: nothing may wrap around, nor the kernel's ends overlap.

    Args:
        length: L.
        lags: K, from lag 0 on.
        reverse_lags: R, from lag -1 down.

    Returns:
        The least number of points.
    """
    return max(length + max(lags - 1, reverse_lags), lags + reverse_lags)


class _Plan:
    """The FFT length and the blocks of one convolution."""

    def __init__(self, u: Tensor, points: int, dtype: torch.dtype) -> None:
        self.batch, self.channels, self.length = u.shape
        self.n = points
        self.dtype = dtype
        rows = rows_per_block(
            self.batch * self.channels, self.n * (8 if dtype == torch.float64 else 4), u.device, budget=_BLOCK_BYTES
        )
        self.channel_step = min(max(rows // max(self.batch, 1), min(_LEAST_CHANNELS, rows)), self.channels)
        self.batch_step = max(1, min(self.batch, rows // max(self.channel_step, 1)))

    @classmethod
    def with_kernels(cls, u: Tensor, kernel: Tensor, reverse_kernel: Tensor | None, dtype: torch.dtype) -> _Plan:
        reverse = 0 if reverse_kernel is None else reverse_kernel.shape[-1]
        return cls(u, fft_length(least_points(u.shape[-1], kernel.shape[-1], reverse)), dtype)

    def channel_blocks(self) -> Iterator[slice]:
        for start in range(0, self.channels, self.channel_step):
            yield slice(start, min(start + self.channel_step, self.channels))

    def batch_blocks(self) -> Iterator[slice]:
        for start in range(0, self.batch, self.batch_step):
            yield slice(start, min(start + self.batch_step, self.batch))

    def signal(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft(spectrum, self.n)[..., : self.length]


class _Padded:
    """Zero-padded memory that every block is written into: padding anew would cost a pass and fresh pages each time.

    Row 0 holds the kernel, whose transform rides along with that of the first signals.
    """

    def __init__(self, plan: _Plan, like: Tensor) -> None:
        self.plan = plan
        shape = (plan.batch_step + 1, plan.channel_step, plan.n)
        self._memory = torch.zeros(shape, dtype=plan.dtype, device=like.device)

    def load_kernel(self, kernel: Tensor, reverse_kernel: Tensor | None, channels: slice) -> None:
        row = self._memory[0, : channels.stop - channels.start]
        row[:, : kernel.shape[1]] = kernel[channels]
        if reverse_kernel is not None:
            row[:, self.plan.n - reverse_kernel.shape[1] :] = reverse_kernel[channels].flip(-1)

    def load(self, signal: Tensor, gate: Tensor | None, batch: slice, channels: slice) -> Tensor:
        """Write gate * signal; what was written, (b, c, L), stays valid until the next load."""
        block = self._block(batch, channels)[1:, :, : self.plan.length]
        block.copy_(_compact(signal[batch, channels]))
        return block if gate is None else block.mul_(_compact(gate[batch, channels]))

    def spectra(self, batch: slice, channels: slice, kernel_spectrum: Tensor | None) -> tuple[Tensor, Tensor]:
        """The kernel's spectrum (c, n/2 + 1), if it is not known yet, and those of the signals (b, c, n/2 + 1)."""
        block = self._block(batch, channels)
        if kernel_spectrum is not None:
            return kernel_spectrum, torch.fft.rfft(block[1:])
        both = torch.fft.rfft(block)
        return both[0], both[1:]

    def zero_sums(self, channels: slice) -> tuple[Tensor, Tensor]:
        """What sums over the batch start from: one spectrum per channel, one number per channel."""
        numbers = self._memory.new_zeros(channels.stop - channels.start)
        return torch.complex(numbers, numbers)[:, None].repeat(1, self.plan.n // 2 + 1), numbers

    def _block(self, batch: slice, channels: slice) -> Tensor:
        return self._memory[: batch.stop - batch.start + 1, : channels.stop - channels.start]


def _compact(block: Tensor) -> Tensor:
    """Gather the channels of a (B, L, H) signal first: turned in place, every number would come from a line of its own.

    Writing into such a signal needs no detour.

    Returns:
        The same numbers, close together if time does not run along the memory.
    """
    return block if block.stride(-1) == 1 else block.clone()


@torch.library.custom_op("milkweed::fft_conv", mutates_args=())
def fft_conv(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """Convolve blocks of (B, H, L) signals; the arguments are those of `milkweed.ops.fft_conv`."""
    plan = _Plan.with_kernels(
        u, kernel, reverse_kernel, compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    )
    out = on_huge_pages(torch.empty_like(u))
    padded = _Padded(plan, u)
    for channels in plan.channel_blocks():
        padded.load_kernel(kernel, reverse_kernel, channels)
        kernel_spectrum = None
        for batch in plan.batch_blocks():
            v = padded.load(u, pre_gate, batch, channels)
            kernel_spectrum, spectrum = padded.spectra(batch, channels, kernel_spectrum)
            y = plan.signal(spectrum.mul_(kernel_spectrum))
            if skip is not None:
                y.addcmul_(v, skip[channels, None].to(plan.dtype))
            if post_gate is not None:
                y.mul_(_compact(post_gate[batch, channels]))
            out[batch, channels] = y
    return out


@fft_conv.register_fake
def _(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    return torch.empty_like(u)


@torch.library.custom_op("milkweed::fft_conv_backward", mutates_args=())
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
    plan = _Plan.with_kernels(
        u, kernel, reverse_kernel, compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    )
    need_u, need_kernel, need_reverse, need_skip, need_pre, need_post = needed
    grads = empty_gradients(u, kernel, reverse_kernel, skip, pre_gate, post_gate, needed)
    grad_u, grad_kernel, grad_reverse, grad_skip, grad_pre, grad_post = grads
    padded = _Padded(plan, u)
    for channels in plan.channel_blocks():
        padded.load_kernel(kernel, reverse_kernel, channels)
        kernel_spectrum = None
        kernel_sum, skip_sum = padded.zero_sums(channels)
        weight = None if skip is None else skip[channels, None].to(plan.dtype)
        for batch in plan.batch_blocks():
            dz = padded.load(grad, post_gate, batch, channels)
            kernel_spectrum, dz_spectrum = padded.spectra(batch, channels, kernel_spectrum)
            if need_skip or (weight is not None and (need_u or need_pre)):
                dz = dz.clone()  # loading v writes over it
            if need_kernel or need_reverse or need_post or need_skip:
                v = padded.load(u, pre_gate, batch, channels)
            if need_kernel or need_reverse or need_post:
                _, v_spectrum = padded.spectra(batch, channels, kernel_spectrum)
                # Written out: torch.compile (2.13) loses the lazy conjugates of a custom op.
                kernel_sum += (dz_spectrum * v_spectrum.conj_physical()).sum(0)
                if need_post:
                    z = plan.signal(v_spectrum.mul_(kernel_spectrum))
                    if weight is not None:
                        z.addcmul_(v, weight)
                    grad_post[batch, channels] = z.mul_(_compact(grad[batch, channels]))
            if need_skip:
                skip_sum += torch.linalg.vecdot(dz, v).sum(0)
            if need_u or need_pre:
                dv = plan.signal(dz_spectrum.mul_(kernel_spectrum.conj_physical()))
                if weight is not None:
                    dv.addcmul_(dz, weight)
                if need_pre:
                    grad_pre[batch, channels] = dv * _compact(u[batch, channels])
                if need_u:
                    grad_u[batch, channels] = dv if pre_gate is None else dv.mul_(_compact(pre_gate[batch, channels]))
        if need_skip:
            grad_skip[channels] = skip_sum
        if need_kernel or need_reverse:
            lags = torch.fft.irfft(kernel_sum, plan.n)
            if need_kernel:
                grad_kernel[channels] = lags[:, : kernel.shape[1]]
            if need_reverse and reverse_kernel is not None:
                grad_reverse[channels] = lags[:, plan.n - reverse_kernel.shape[1] :].flip(-1)
    return grads


def empty_gradients(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make memory for the gradients, in the order of the arguments; that of one not needed holds nothing."""

    def like(tensor: Tensor | None, need: bool) -> Tensor:
        return on_huge_pages(torch.empty_like(tensor)) if need and tensor is not None else u.new_empty(0)

    need_u, need_kernel, need_reverse, need_skip, need_pre, need_post = needed
    return (
        like(u, need_u),
        like(kernel, need_kernel),
        like(reverse_kernel, need_reverse),
        like(skip, need_skip),
        like(pre_gate, need_pre),
        like(post_gate, need_post),
    )


@_backward.register_fake
def _(
    grad: Tensor,
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty_gradients(u, kernel, reverse_kernel, skip, pre_gate, post_gate, needed)


def present_gradients(
    backward: Callable[..., Sequence[Tensor]], grad: Tensor, inputs: Sequence[Any], needed: Sequence[bool]
) -> Sequence[Tensor]:
    """Call a backward op, which knows every argument, for those that are there.

    Args:
        backward: ``backward(grad, *inputs, needed)`` with one flag and one gradient for each input.
        grad: Of the result.
        inputs: The forward's arguments, with ``None`` for those left out.
        needed: Whether a gradient is wanted, for each of the others.

    Returns:
        The gradients of the others.
    """
    present = [value is not None for value in inputs]
    remaining = iter(needed)
    every = [next(remaining) if here else False for here in present]
    found = backward(grad, *inputs, every)
    return [g for g, here in zip(found, present, strict=True) if here]


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    return present_gradients(_backward, grad, inputs, needed)


def differentiable(
    u: Tensor,
    kernel: Tensor,
    reverse_kernel: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """The one-shot FFT formula, whose derivatives of every order torch knows; the fast path's second derivative."""
    plan = _Plan.with_kernels(
        u, kernel, reverse_kernel, compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    )
    spectrum = torch.fft.rfft(kernel.to(plan.dtype), plan.n)
    if reverse_kernel is not None:
        padded = torch.nn.functional.pad(reverse_kernel.to(plan.dtype), (0, plan.n - reverse_kernel.shape[1]))
        spectrum = spectrum + torch.fft.rfft(padded.flip(-1))
    v = u.to(plan.dtype) if pre_gate is None else u.to(plan.dtype) * pre_gate
    y = plan.signal(torch.fft.rfft(v, plan.n) * spectrum)
    if skip is not None:
        y = y + skip.to(plan.dtype)[:, None] * v
    if post_gate is not None:
        y = y * post_gate
    return y.to(u.dtype)


register_differentiable(fft_conv, differentiable, _gradients)


@register_flop_formula(torch.ops.milkweed.fft_conv)
def count_flops(u_shape: Any, kernel_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Count a transform of each signal there and back and one of each kernel, and their products."""
    batch, channels, length = (int(size) for size in u_shape)
    return (2 * batch + 1) * channels * _transform_flops(length) + 6 * batch * channels * length


@register_flop_formula(torch.ops.milkweed.fft_conv_backward)
def count_backward_flops(grad_shape: Any, u_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Count the transforms of both signals, one back for each signal and for each kernel, and their products."""
    batch, channels, length = (int(size) for size in u_shape)
    return (3 * batch + 2) * channels * _transform_flops(length) + 12 * batch * channels * length


def _transform_flops(length: int) -> int:
    """A real FFT of 2 L points by the usual count, 2.5 n log2 n."""
    n = 2 * length
    return int(2.5 * n * n.bit_length())


@torch.library.custom_op("milkweed::frozen_conv", mutates_args=())
def frozen_conv(
    u: Tensor, spectrum: Tensor, points: int, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    """Convolve (B, H, L) signals with a spectrum's lowest frequencies (H, F, 2), of so many points."""
    plan = _Plan(u, points, compute_dtype(u, spectrum, skip, pre_gate, post_gate))
    out = on_huge_pages(torch.empty_like(u))
    padded = _Padded(plan, u)
    for channels in plan.channel_blocks():
        kept = torch.view_as_complex(spectrum[channels].to(plan.dtype).contiguous())
        for batch in plan.batch_blocks():
            v = padded.load(u, pre_gate, batch, channels)
            found = padded.spectra(batch, channels, kept)[1][..., : kept.shape[1]]
            y = plan.signal(found.mul_(kept))
            if skip is not None:
                y.addcmul_(v, skip[channels, None].to(plan.dtype))
            if post_gate is not None:
                y.mul_(_compact(post_gate[batch, channels]))
            out[batch, channels] = y
    return out


@frozen_conv.register_fake
def _(
    u: Tensor, spectrum: Tensor, points: int, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    return torch.empty_like(u)


def frozen_differentiable(
    u: Tensor, spectrum: Tensor, points: int, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    """Convolve with a spectrum in one go, in functions that torch can derive any number of times.

    Args:
        u: (B, H, L).
        spectrum: (H, F, 2).
        points: Of the transform.
        skip: (H,).
        pre_gate: (B, H, L).
        post_gate: (B, H, L).

    Returns:
        (B, H, L) in ``u``'s dtype.
    """
    dtype = compute_dtype(u, spectrum, skip, pre_gate, post_gate)
    v = u.to(dtype) if pre_gate is None else u.to(dtype) * pre_gate
    kept = torch.view_as_complex(spectrum.to(dtype).contiguous())
    found = torch.fft.rfft(v, points)[..., : kept.shape[1]] * kept
    y = torch.fft.irfft(found, points)[..., : u.shape[-1]]
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * v
    if post_gate is not None:
        y = y * post_gate
    return y.to(u.dtype)


@torch.library.custom_op("milkweed::frozen_conv_backward", mutates_args=())
def frozen_conv_backward(
    grad: Tensor,
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derive by u, skip and both gates; what is not there has an empty gradient, and the spectrum is frozen."""
    dtype = compute_dtype(u, spectrum, skip, pre_gate, post_gate)
    kept = torch.view_as_complex(spectrum.to(dtype).contiguous())

    def filtered(signal: Tensor, spectrum: Tensor) -> Tensor:
        found = torch.fft.rfft(signal, points)[..., : kept.shape[1]] * spectrum
        return torch.fft.irfft(found, points)[..., : u.shape[-1]]

    def like(tensor: Tensor | None, gradient: Tensor | None) -> Tensor:
        return u.new_empty(0) if tensor is None or gradient is None else gradient.to(tensor.dtype).contiguous()

    weight = None if skip is None else skip.to(dtype)[:, None]
    v = u.to(dtype) if pre_gate is None else u.to(dtype) * pre_gate
    dz = grad.to(dtype) if post_gate is None else grad.to(dtype) * post_gate
    dv = filtered(dz, kept.conj_physical())
    z = None if post_gate is None else filtered(v, kept)
    if weight is not None:
        dv.addcmul_(dz, weight)
        z = None if z is None else z.addcmul_(v, weight)
    return (
        like(u, dv if pre_gate is None else dv * pre_gate),
        like(skip, torch.linalg.vecdot(dz, v).sum(0)),
        like(pre_gate, dv * u),
        like(post_gate, None if z is None else z * grad),
    )


@frozen_conv_backward.register_fake
def _(
    grad: Tensor,
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return u.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(u), like(skip), like(pre_gate), like(post_gate)


def frozen_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor]:
    """Put the gradients beside the tensors that were given; the spectrum's place holds the spectrum itself.

    Args:
        grad: Of the result.
        inputs: u, spectrum, points, skip, pre_gate and post_gate.
        kept: Nothing.
        needed: Ignored, all are computed.

    Returns:
        One gradient for each tensor.
    """
    u, spectrum, points, *rest = inputs
    by_u, *by_rest = frozen_conv_backward(grad, u, spectrum, points, *rest)
    return [by_u, spectrum, *(g for g, tensor in zip(by_rest, rest, strict=True) if tensor is not None)]


register_differentiable(frozen_conv, frozen_differentiable, frozen_gradients)
