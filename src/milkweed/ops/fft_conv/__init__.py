"""Long convolution along the last dimension."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from milkweed._arguments import check_real
from milkweed.ops import backends
from milkweed.ops._common import needs_plain_formula
from milkweed.ops._triton import refuses, triton_backend
from milkweed.ops.fft_conv import eager, export, reference
from milkweed.ops.fft_conv._blocks import least_points
from milkweed.ops.fft_conv._triton_plan import too_long
from milkweed.ops.fft_conv.frozen import FrozenKernel


def _frozen(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A backend that takes a frozen kernel as its tensors."""

    def frozen_conv(u: Tensor, kernel: FrozenKernel, *rest: Tensor | None) -> Tensor:
        return run(u, kernel.spectrum, kernel.points, *rest, *kernel.reach)

    return frozen_conv


def _frozen_float64(u: Tensor, kernel: FrozenKernel, *rest: Tensor | None) -> Tensor:
    # From the lags: what they lack of digits then stays where they reach, while a spectrum's error goes everywhere.
    lags = reference.frozen_lags(kernel.spectrum.double(), kernel.points, u.shape[-1], kernel.reach)
    wide = [None if tensor is None else tensor.double() for tensor in rest]
    return eager.fft_conv(u.double(), *lags, *wide).to(u.dtype)


def _frozen_float64_refusal(u: Tensor, *rest: Tensor | FrozenKernel | None) -> str | None:
    return backends.lacks_float64(u) or needs_plain_formula(u, *rest)


def _frozen_export(u: Tensor, kernel: FrozenKernel, *rest: Tensor | None) -> Tensor:
    return export.frozen_conv(u, kernel.spectrum, kernel.points, kernel.length, *rest)


def _frozen_triton(u: Tensor, kernel: FrozenKernel, *rest: Tensor | None) -> Tensor:
    from milkweed.ops.fft_conv import triton

    return triton.frozen_conv(u, kernel, *rest)


def _triton(*args: Tensor | None) -> Tensor:
    from milkweed.ops.fft_conv import triton

    return triton.fft_conv(*args)


def _triton_refusal(
    u: Tensor, kernel: Tensor, reverse_kernel: Tensor | None = None, *rest: Tensor | None
) -> str | None:
    tensors = [t for t in (u, kernel, reverse_kernel, *rest) if t is not None]
    summing = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    reverse = 0 if reverse_kernel is None else reverse_kernel.shape[-1]
    points = least_points(u.shape[-1], kernel.shape[-1], reverse)
    return refuses(*tensors) or too_long(u, points, kernel.shape[-1] - 1 + reverse, summing)


def _frozen_triton_refusal(u: Tensor, kernel: FrozenKernel, *rest: Tensor | None) -> str | None:
    return refuses(u, *rest) or too_long(u, kernel.points, kernel.points - 1, False)


backends.register(
    "fft_conv",
    dataclasses.replace(triton_backend(_triton), refusal=_triton_refusal),
    backends.Backend("eager", eager.fft_conv, needs_plain_formula),
    backends.Backend("reference", reference.fft_conv),
    backends.export_backend(export.fft_conv),
)

backends.register(
    "frozen_conv",
    dataclasses.replace(triton_backend(_frozen_triton), refusal=_frozen_triton_refusal),
    backends.Backend("eager", _frozen(eager.frozen_conv), needs_plain_formula),
    backends.Backend("reference", _frozen(reference.frozen_conv)),
    backends.export_backend(_frozen_export),
    backends.Backend("float64", _frozen_float64, _frozen_float64_refusal),
)


def fft_conv(
    u: Tensor,
    kernel: Tensor | FrozenKernel,
    *,
    reverse_kernel: Tensor | None = None,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve every channel with its own kernel, as long as the signal itself, in O(L log L).

    ``y = post_gate * (conv(v) + skip * v)`` with ``v = pre_gate * u`` and
    ``conv(v)_t = sum_j kernel_j v_{t-j} + sum_j reverse_kernel_j v_{t+1+j}``; the signal is zero outside 0 .. L - 1.
    Transforms are computed in float32 at least, whatever the input's dtype and whether or not autocast is on.

    A transform's error is spread over the whole sequence: every output is right to about ``eps * ‖v‖ * ‖kernel‖``, the
    norms of all steps and all lags of its channel, and to four times that at worst. So one step of 1e6 among steps of
    1e-3 drowns what came before it too. ``backend="float64"`` takes the transforms in float64, forward and backward, at
    two to three times the time; ``with use_backend("float64")`` reaches the convolutions inside layers.

    Infinities and NaN, in the signals or in the kernel, reach the outputs and gradients whose sums they are part of and
    no others: these are NaN, with the reference backend infinite where the sum is.

    Args:
        u: (..., H, L), real. A transposed (B, L, H) tensor is as good as a contiguous one.
        kernel: (H, K) with 1 <= K <= L, for lags 0 .. K - 1; or a [`FrozenKernel`][milkweed.ops.FrozenKernel], whose
            transform is there already, for any L up to its own.
        reverse_kernel: (H, R) with 1 <= R <= L, for lags -1 .. -R; the convolution is then bidirectional.
        skip: (H,), the D of a state space model.
        pre_gate: Same shape as ``u``.
        post_gate: Same shape as ``u``.
        backend: ``"triton"``, ``"eager"``, ``"float64"`` or ``"reference"``; by default the context's, else the fastest
            that can run.

    Returns:
        (..., H, L) in ``u``'s dtype and memory order.

    Raises:
        ValueError: A shape does not fit, or the backend is unknown.
        TypeError: A tensor is not real floating point.

    Source:
        The FFT convolution of S4 (arXiv 2111.00396), gates as in Monarch Mixer (arXiv 2310.12109, section 4).

    Example:
        >>> u = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
        >>> y = mw.ops.fft_conv(u, torch.tensor([[1.0, 0.5, 0.25]]))
        >>> [round(number, 4) for number in y[0].tolist()]
        [1.0, 0.5, 0.25, 2.0]
    """
    optional = {"reverse_kernel": reverse_kernel, "skip": skip, "pre_gate": pre_gate, "post_gate": post_gate}
    check_real(
        u=u,
        kernel=kernel.spectrum if isinstance(kernel, FrozenKernel) else kernel,
        **{name: tensor for name, tensor in optional.items() if tensor is not None},
    )
    if u.ndim < 2 or 0 in u.shape[-2:]:
        raise ValueError(f"u must be (..., H, L) with H, L >= 1; got shape {tuple(u.shape)}")
    channels, length = u.shape[-2:]
    if isinstance(kernel, FrozenKernel):
        _check_frozen(kernel, reverse_kernel, u)
    else:
        for name, lags in (("kernel", kernel), ("reverse_kernel", reverse_kernel)):
            if lags is not None:
                _check_lags(name, lags, channels, length)
    if skip is not None and skip.shape != (channels,):
        raise ValueError(f"skip must be (H,) = ({channels},); got shape {tuple(skip.shape)}")
    for name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
        if gate is not None and gate.shape != u.shape:
            raise ValueError(f"{name} must have u's shape {tuple(u.shape)}; got {tuple(gate.shape)}; use expand_as(u)")

    def flat(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.ndim == 3:
            return tensor
        return tensor.reshape(math.prod(tensor.shape[:-2]), channels, length)

    gates = (flat(pre_gate), flat(post_gate))
    if isinstance(kernel, FrozenKernel):
        out = backends.dispatch("frozen_conv", backend, flat(u), kernel, skip, *gates)
    else:
        out = backends.dispatch("fft_conv", backend, flat(u), kernel, reverse_kernel, skip, *gates)
    return out if u.ndim == 3 else out.reshape(u.shape)


def _check_frozen(kernel: FrozenKernel, reverse_kernel: Tensor | None, u: Tensor) -> None:
    channels, length = u.shape[-2:]
    if reverse_kernel is not None:
        raise ValueError(
            "reverse_kernel is part of a FrozenKernel; give it there: FrozenKernel(kernel, reverse_kernel, ...)"
        )
    if kernel.channels != channels or kernel.length < length:
        raise ValueError(
            f"kernel is frozen for {kernel.channels} channels and {kernel.length} steps at most; got u of shape "
            f"{tuple(u.shape)}; make a FrozenKernel with length={length} from a kernel (H, lags) with H = {channels}"
        )
    if kernel.spectrum.device != u.device:
        raise ValueError(f"kernel is frozen on {kernel.spectrum.device}, u is on {u.device}; freeze it on {u.device}")


def _check_lags(name: str, lags: Tensor, channels: int, length: int) -> None:
    if lags.ndim != 2 or lags.shape[0] != channels:
        raise ValueError(f"{name} must be (H, lags) with H = {channels}; got shape {tuple(lags.shape)}")
    if not 1 <= lags.shape[1] <= length:
        raise ValueError(
            f"{name} has {lags.shape[1]} lags; expected 1 to L = {length}; crop it with {name}[:, :{length}]"
        )
