"""Long convolution by FFT over blocks of channels that stay in cache; README.md derives it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import compute_dtype, register_differentiable
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.fft_conv import _nonfinite
from milkweed.ops.fft_conv._blocks import Padded, Plan, compact
from milkweed.ops.fft_conv._channels import Channels, LagSums
from milkweed.ops.fft_conv.reference import frozen_lags


def _kernels(plan: Plan, padded: Padded, kernel: Tensor, reverse_kernel: Tensor | None) -> Iterator[Channels]:
    """The blocks of channels, each with its kernel loaded."""

    def careful(channels: slice) -> _nonfinite.Kernel:
        reverse = None if reverse_kernel is None else reverse_kernel[channels].to(plan.dtype)
        return _nonfinite.transform(kernel[channels].to(plan.dtype), reverse, plan.n, plan.length)

    for channels in plan.channel_blocks():
        padded.load_kernel(kernel, reverse_kernel, channels)
        yield Channels(padded, channels, functools.partial(careful, channels), None)


def _convolved(
    plan: Plan,
    padded: Padded,
    kernels: Iterator[Channels],
    u: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> Tensor:
    """The forward pass, whatever the kernels come from."""
    out = on_huge_pages(torch.empty_like(u))
    for block in kernels:
        channels = block.slice
        for batch in plan.batch_blocks():
            v = padded.load(u, pre_gate, batch, channels)
            y = block.convolve(block.transform(batch), v)
            if skip is not None:
                y.addcmul_(v, skip[channels, None].to(plan.dtype))
            if post_gate is not None:
                y.mul_(compact(post_gate[batch, channels]))
            out[batch, channels] = y
    return out


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
    plan = Plan.with_kernels(
        u, kernel, reverse_kernel, compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    )
    padded = Padded(plan, u)
    return _convolved(plan, padded, _kernels(plan, padded, kernel, reverse_kernel), u, skip, pre_gate, post_gate)


def like_signal(u: Tensor, *_: object, **__: object) -> Tensor:
    """Memory for what a forward op returns: its fake implementation."""
    return torch.empty_like(u)


fft_conv.register_fake(like_signal)


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
    plan = Plan.with_kernels(
        u, kernel, reverse_kernel, compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    )
    grads = empty_gradients(u, (kernel, reverse_kernel, skip, pre_gate, post_gate), needed)
    wanted = [found if need else None for found, need in zip(grads, needed, strict=True)]
    grad_u, grad_kernel, grad_reverse, *others = wanted
    padded = Padded(plan, u)
    for block in _kernels(plan, padded, kernel, reverse_kernel):
        lags = LagSums(padded, block.slice) if grad_kernel is not None or grad_reverse is not None else None
        _write_gradients(block, grad, (u, skip, pre_gate, post_gate), (grad_u, *others), lags)
        if lags is not None:
            forward, backward = lags.total(0 if reverse_kernel is None else reverse_kernel.shape[1])
            if grad_kernel is not None:
                grad_kernel[block.slice] = forward[:, : kernel.shape[1]]
            if grad_reverse is not None:
                grad_reverse[block.slice] = backward
    return grads


def _write_gradients(
    block: Channels,
    grad: Tensor,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    grads: Sequence[Tensor | None],
    lags: LagSums | None,
) -> None:
    """Write a block's gradients of u, the skip and both gates, as far as wanted, and sum up those of the lags."""
    # README.md, "Backward". A spectrum is written over by its last use, so ∂v comes after the lags, which need G too.
    (u, skip, pre_gate, post_gate), (grad_u, grad_skip, grad_pre, grad_post) = inputs, grads
    plan, padded, channels = block.plan, block.padded, block.slice
    needs_dv = grad_u is not None or grad_pre is not None
    weight = None if skip is None else skip[channels, None].to(plan.dtype)
    skip_sum = padded.zeros(channels)
    for batch in plan.batch_blocks():
        dz = padded.load(grad, post_gate, batch, channels)
        dz_spectrum = block.transform(batch)
        if grad_skip is not None or (weight is not None and needs_dv):
            dz = dz.clone()  # loading v writes over it
        gradient = functools.partial(_loaded, grad, post_gate, batch, channels, plan.dtype)
        if lags is not None or grad_post is not None or grad_skip is not None:
            v = padded.load(u, pre_gate, batch, channels)
        if lags is not None or grad_post is not None:
            v_spectrum = block.transform(batch)
        if lags is not None:
            lags.add(dz_spectrum, v_spectrum, gradient, v)
        if grad_post is not None:
            z = block.convolve(v_spectrum, v)
            if weight is not None:
                z.addcmul_(v, weight)
            grad_post[batch, channels] = z.mul_(compact(grad[batch, channels]))
        if grad_skip is not None:
            skip_sum += torch.linalg.vecdot(dz, v).sum(0)
        if needs_dv:
            dv = block.correlate(dz_spectrum, gradient)
            if weight is not None:
                dv.addcmul_(dz, weight)
            if grad_pre is not None:
                grad_pre[batch, channels] = dv * compact(u[batch, channels])
            if grad_u is not None:
                grad_u[batch, channels] = dv if pre_gate is None else dv.mul_(compact(pre_gate[batch, channels]))
    if grad_skip is not None:
        grad_skip[channels] = skip_sum


def _loaded(signal: Tensor, gate: Tensor | None, batch: slice, channels: slice, dtype: torch.dtype) -> Tensor:
    """Gate * signal in memory of its own."""
    block = signal[batch, channels].to(dtype)
    return block.clone() if gate is None else block * gate[batch, channels]


def empty_gradients(
    u: Tensor, others: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make memory for the gradients of u and the others, in their order; that of one not needed holds nothing."""
    by_u, kernel, reverse_kernel, skip, pre_gate, post_gate = (
        on_huge_pages(torch.empty_like(tensor)) if need and tensor is not None else u.new_empty(0)
        for tensor, need in zip((u, *others), needed, strict=True)
    )
    return by_u, kernel, reverse_kernel, skip, pre_gate, post_gate


def like_inputs(
    grad: Tensor, u: Tensor, *others_and_needed: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Memory for what a backward op returns: its fake implementation."""
    *others, needed = others_and_needed
    return empty_gradients(u, others, needed)


_backward.register_fake(like_inputs)


def present_gradients(
    backward: Callable[..., Sequence[Tensor]], grad: Tensor, inputs: Sequence[Any], needed: Sequence[bool]
) -> Sequence[Tensor]:
    """Call a backward op, which has a flag and a gradient for every input, for those inputs that are not None."""
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
    """Convolve in functions that torch can derive any number of times, with this op's own convolutions."""
    dtype = compute_dtype(u, kernel, reverse_kernel, skip, pre_gate, post_gate)
    v = u.to(dtype) if pre_gate is None else u.to(dtype) * pre_gate
    reverse = None if reverse_kernel is None else reverse_kernel.to(dtype)
    y = fft_conv(v, kernel.to(dtype), reverse, None, None, None)
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * v
    if post_gate is not None:
        y = y * post_gate
    return y.to(u.dtype)


def _derivable_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor | None]:
    """The gradients as convolutions that can be derived again."""
    u, kernel, reverse_kernel, skip, pre_gate, post_gate = inputs
    if any(tensor is not None for tensor in (skip, pre_gate, post_gate)):
        present = [tensor for tensor in inputs if tensor is not None]
        wanted = [tensor for tensor, need in zip(present, needed, strict=True) if need]
        found = iter(torch.autograd.grad(differentiable(*inputs), wanted, grad, create_graph=True, allow_unused=True))
        return [next(found) if need else None for need in needed]
    dtype, (batch, channels, length) = compute_dtype(u, kernel, reverse_kernel), u.shape
    g, backwards = grad.to(dtype), grad.to(dtype).flip(-1)

    def convolved(signal: Tensor, lags: Tensor, reverse: Tensor | None) -> Tensor:
        return fft_conv(signal, lags, reverse, None, None, None)

    def correlated(signal: Tensor, lags: Tensor) -> Tensor:
        """Every signal with lags of its own, in reversed time, summed over the batch: (H, L), from lag 0 on."""
        y = convolved(signal.reshape(1, batch * channels, length), lags.reshape(batch * channels, length), None)
        return y.reshape(batch, channels, length).sum(0).flip(-1)

    v, wide = u.to(dtype), kernel.to(dtype)
    reverse = None if reverse_kernel is None else reverse_kernel.to(dtype)
    need_u, need_kernel, *need_reverse = needed
    grads: list[Tensor | None] = [
        convolved(backwards, wide, reverse).flip(-1).to(u.dtype) if need_u else None,
        correlated(backwards, v)[:, : kernel.shape[1]].to(kernel.dtype) if need_kernel else None,
    ]
    if reverse_kernel is not None:
        # Lag 0 is none of them, and there is no pair of steps at lag -L.
        lags = torch.nn.functional.pad(correlated(v.flip(-1), g)[:, 1:], (0, 1)) if need_reverse[0] else None
        grads.append(None if lags is None else lags[:, : reverse_kernel.shape[1]].to(reverse_kernel.dtype))
    return grads


register_differentiable(fft_conv, differentiable, _gradients, _derivable_gradients)


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


def _frozen_kernels(plan: Plan, padded: Padded, spectrum: Tensor, reach: tuple[int, int]) -> Iterator[Channels]:
    """The blocks of channels, each with its part of a spectrum (H, F, 2)."""

    def careful(kept: Tensor) -> _nonfinite.Kernel:
        return _nonfinite.Kernel(kept, None, *reach)

    for channels in plan.channel_blocks():
        kept = torch.view_as_complex(spectrum[channels].to(plan.dtype).contiguous())
        yield Channels(padded, channels, functools.partial(careful, kept), kept)


@torch.library.custom_op("milkweed::frozen_conv", mutates_args=())
def frozen_conv(
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    ahead: int,
    behind: int,
) -> Tensor:
    """Convolve (B, H, L) signals with a spectrum's lowest frequencies (H, F, 2), of so many points and lags."""
    plan = Plan(u, points, compute_dtype(u, spectrum, skip, pre_gate, post_gate))
    padded = Padded(plan, u)
    kernels = _frozen_kernels(plan, padded, spectrum, (ahead, behind))
    return _convolved(plan, padded, kernels, u, skip, pre_gate, post_gate)


frozen_conv.register_fake(like_signal)


def frozen_differentiable(
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    *reach: int,
) -> Tensor:
    """Convolve with a spectrum, in functions that torch can derive any number of times."""
    # ``reach`` is the greatest lag and the greatest negative lag; by default every lag of the circle.
    dtype = compute_dtype(u, spectrum, skip, pre_gate, post_gate)
    kernel, reverse = frozen_lags(spectrum.to(dtype), points, u.shape[-1], reach or (points, points))
    return differentiable(u, kernel, reverse, skip, pre_gate, post_gate)


@torch.library.custom_op("milkweed::frozen_conv_backward", mutates_args=())
def frozen_conv_backward(
    grad: Tensor,
    u: Tensor,
    spectrum: Tensor,
    points: int,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    ahead: int,
    behind: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derive by u, skip and both gates; what is not there has an empty gradient, and the spectrum is frozen."""
    plan = Plan(u, points, compute_dtype(u, spectrum, skip, pre_gate, post_gate))
    given = (u, skip, pre_gate, post_gate)
    grads = _empty_like_each(u, given)
    wanted = [found if tensor is not None else None for found, tensor in zip(grads, given, strict=True)]
    padded = Padded(plan, u)
    for block in _frozen_kernels(plan, padded, spectrum, (ahead, behind)):
        _write_gradients(block, grad, given, wanted, None)
    return grads


def _empty_like_each(
    u: Tensor, tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (u.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors)
    return a, b, c, d


@frozen_conv_backward.register_fake
def _(
    grad: Tensor, u: Tensor, spectrum: Tensor, points: int, *skip_and_gates: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_like_each(u, (u, *skip_and_gates[:3]))


def frozen_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor]:
    """Put the gradients beside the tensors that were given; the spectrum's place holds the spectrum itself."""
    u, spectrum, points, *rest = inputs[:6]
    by_u, *by_rest = frozen_conv_backward(grad, u, spectrum, points, *rest, *(inputs[6:] or (points, points)))
    return [by_u, spectrum, *(g for g, tensor in zip(by_rest, rest, strict=True) if tensor is not None)]


register_differentiable(frozen_conv, frozen_differentiable, frozen_gradients)
