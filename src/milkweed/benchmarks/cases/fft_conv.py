"""Long convolution against the transform of the whole signal at once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from milkweed import ops
from milkweed.benchmarks.pairs import Inputs, tensor_pair
from milkweed.benchmarks.registry import Case, Figure, Pair, Size, register

# float32 FFTs of 8192 points lose about three digits in sums over batch and length.
_TOLERANCE = 2e-5
_AGAINST = "irfft(rfft(u, 2L) * rfft(k, 2L)) in one go"
_SIZE = {"batch": 8, "channels": 256, "length": 4096}
_SMALL = {"batch": 4, "channels": 32, "length": 64}
_TINY = {"batch": 2, "channels": 3, "length": 37}


def one_shot(tensors: Inputs) -> Tensor:
    """Convolve along the last axis through one zero-padded transform of everything.

    Args:
        tensors: ``u`` (B, H, L) and ``kernel`` (H, L) for lags 0, 1, ...; optionally ``reverse_kernel`` (H, L) for lags
            -1, -2, ..., ``skip`` (H,), ``pre_gate`` and ``post_gate`` (B, H, L).

    Returns:
        ``post_gate * (kernel convolved with v + skip * v)`` for ``v = pre_gate * u``, (B, H, L).
    """
    u, kernel = tensors["u"], tensors["kernel"]
    length = u.shape[-1]
    v = tensors["pre_gate"] * u if "pre_gate" in tensors else u
    if "reverse_kernel" in tensors:
        # In a circle of 2L points, lag -1 is the last point, lag -2 the one before it.
        backward = tensors["reverse_kernel"].flip(-1)
        kernel = torch.cat([kernel, backward], dim=-1)
    spectrum = torch.fft.rfft(v, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    if "skip" in tensors:
        y = y + tensors["skip"].unsqueeze(-1) * v
    return tensors["post_gate"] * y if "post_gate" in tensors else y


def _ours(tensors: Inputs) -> Tensor:
    options = {name: x for name, x in tensors.items() if name not in {"u", "kernel"}}
    return ops.fft_conv(tensors["u"], tensors["kernel"], **options)


def build(size: Size, *, training: bool, gated: bool) -> Pair:
    """Draw a signal and a decaying kernel.

    Args:
        size: ``batch``, ``channels`` and ``length``.
        training: Whether to measure the backward pass too, with gradients of every input.
        gated: Whether to add a kernel for negative lags, a skip term and both gates.

    Returns:
        The pair.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, length = size["batch"], size["channels"], size["length"]
    draw = partial(torch.randn, generator=generator)
    decay = torch.exp(-4 * torch.arange(length) / length)
    inputs = {"u": draw(batch, channels, length), "kernel": draw(channels, length) * decay}
    if gated:
        inputs |= {
            "reverse_kernel": draw(channels, length) * decay,
            "skip": draw(channels),
            "pre_gate": draw(batch, channels, length),
            "post_gate": draw(batch, channels, length),
        }
    for x in inputs.values():
        x.requires_grad_(training)
    cotangent = draw(batch, channels, length) if training else None
    return tensor_pair(_ours, one_shot, inputs, cotangent=cotangent, tolerance=_TOLERANCE)


def build_frozen(size: Size) -> Pair:
    """Draw a signal and a kernel whose spectrum both sides know beforehand.

    Args:
        size: ``batch``, ``channels`` and ``length``.

    Returns:
        The pair, forward.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, length = size["batch"], size["channels"], size["length"]
    decay = torch.exp(-4 * torch.arange(length) / length)
    kernel = torch.randn(channels, length, generator=generator) * decay
    frozen = ops.FrozenKernel(kernel, length=length)

    def plain(tensors: Inputs) -> Tensor:
        u, spectrum = tensors["u"], torch.view_as_complex(tensors["spectrum"])
        return torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * spectrum, n=2 * length)[..., :length]

    spectrum = torch.view_as_real(torch.fft.rfft(kernel, n=2 * length))
    inputs = {"u": torch.randn(batch, channels, length, generator=generator), "spectrum": spectrum}
    return tensor_pair(
        lambda tensors: ops.fft_conv(tensors["u"], frozen), plain, inputs, cotangent=None, tolerance=_TOLERANCE
    )


def _add(
    name: str,
    description: str,
    figure: Figure,
    *,
    bar: float | None = None,
    gated: bool = False,
    size: Size = _SIZE,
) -> None:
    make = partial(build, training=figure is not Figure.FORWARD, gated=gated)
    register(Case(f"fft-conv-{name}", description, _AGAINST, figure, make, size, _TINY, bar))


_add("forward", "causal convolution", Figure.FORWARD, bar=2.5)
_add("train", "causal convolution, all gradients", Figure.TRAINING, bar=2.0)
_add("memory", "causal convolution, all gradients: extra memory", Figure.MEMORY, bar=3.0)
_add("gated-train", "both directions, skip term and two gates, all gradients", Figure.TRAINING, gated=True)
_add("forward-small", "causal convolution, short", Figure.FORWARD, size=_SMALL)
_add("train-small", "causal convolution, short, all gradients", Figure.TRAINING, size=_SMALL)
register(
    Case(
        "fft-conv-frozen",
        "causal convolution with a frozen kernel",
        "irfft(rfft(u, 2L) * spectrum) in one go",
        Figure.FORWARD,
        build_frozen,
        _SIZE,
        _TINY,
    )
)
