"""Long convolution against the transform of the whole signal at once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Size, Work, draw, register
from benchmarks.differentiable import Inputs, by_backend, conv_flops, differentiable
from milkweed import ops

# float32 FFTs of 8192 points lose about three digits in sums over batch and length.
_TOLERANCE = 2e-5
# Twice that of one rounding of half precision, twice.
_HALF_TOLERANCE = 2e-2
_PEER = "irfft(rfft(u, 2L) * rfft(k, 2L)) in one go"
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


def half_one_shot(tensors: Inputs) -> Tensor:
    """The same as it is written for half precision: gates and skip in that, transforms in float32 at least."""
    u = tensors["u"]
    v = tensors["pre_gate"] * u
    wide = {name: tensors[name] for name in ("kernel", "reverse_kernel") if name in tensors}
    y = one_shot({"u": v if v.dtype == torch.float64 else v.float(), **wide}).to(u.dtype)
    return tensors["post_gate"] * (y + tensors["skip"].to(u.dtype)[:, None] * v)


def _ours(tensors: Inputs, backend: str | None = None) -> Tensor:
    options = {name: x for name, x in tensors.items() if name not in {"u", "kernel"}}
    return ops.fft_conv(tensors["u"], tensors["kernel"], backend=backend, **options)


def _decaying(channels: int, length: int, *, scale: float = 1.0, gradient: bool = False) -> Tensor:
    kernel = draw(channels, length, scale=scale) * torch.exp(-4 * torch.arange(length) / length)
    return kernel.requires_grad_(gradient)


def build(size: Size, *, training: bool, gated: bool = False) -> Work:
    """A signal and a decaying kernel; with gates, a kernel for negative lags and a skip term too."""
    batch, channels, length = size["batch"], size["channels"], size["length"]
    inputs = {
        "u": draw(batch, channels, length, gradient=training),
        "kernel": _decaying(channels, length, gradient=training),
    }
    if gated:
        inputs |= {
            "reverse_kernel": _decaying(channels, length, gradient=training),
            "skip": draw(channels, gradient=training),
            "pre_gate": draw(batch, channels, length, gradient=training),
            "post_gate": draw(batch, channels, length, gradient=training),
        }
    return differentiable(
        {"ours": _ours, "peer": one_shot},
        one_shot,
        inputs,
        draw(batch, channels, length),
        training=training,
        tolerance=_TOLERANCE,
        flops=conv_flops(batch, channels, length, training=training),
    )


def build_frozen(size: Size) -> Work:
    """A signal and a kernel whose spectrum both sides know beforehand."""
    batch, channels, length = size["batch"], size["channels"], size["length"]
    kernel = _decaying(channels, length)
    frozen = ops.FrozenKernel(kernel, length=length)

    def plain(tensors: Inputs) -> Tensor:
        u, spectrum = tensors["u"], torch.view_as_complex(tensors["spectrum"])
        return torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * spectrum, n=2 * length)[..., :length]

    return differentiable(
        {"ours": lambda tensors: ops.fft_conv(tensors["u"], frozen), "peer": plain},
        plain,
        {"u": draw(batch, channels, length), "spectrum": torch.view_as_real(torch.fft.rfft(kernel, n=2 * length))},
        draw(batch, channels, length),
        training=False,
        tolerance=_TOLERANCE,
        flops=conv_flops(batch, channels, length, training=False, spectra=0),
    )


def build_half(size: Size, *, training: bool) -> Work:
    """Gates and skip in bfloat16, in training with a kernel for negative lags; two channels are compared."""
    shape, lags = (size["batch"], size["channels"], size["length"]), (size["channels"], size["length"])
    half = partial(draw, *shape, dtype=torch.bfloat16, gradient=training)
    kernel = partial(_decaying, *lags, scale=lags[1] ** -0.5, gradient=training)
    inputs = {"u": half(), "pre_gate": half(), "post_gate": half(), "kernel": kernel()}
    if training:
        inputs["reverse_kernel"] = kernel()
    inputs["skip"] = draw(lags[0], gradient=training)
    return differentiable(
        by_backend(_ours, half_one_shot),
        half_one_shot,
        inputs,
        draw(*shape, dtype=torch.bfloat16),
        training=training,
        tolerance=_HALF_TOLERANCE,
        flops=conv_flops(*shape, training=training),
        part=lambda name, x: x[:, :2] if x.ndim == 3 else x[:2],
    )


def _add(
    name: str, what: str, figure: Figure, *, bar: float | None = None, gated: bool = False, size: Size = _SIZE
) -> None:
    make = partial(build, training=figure is not Figure.FORWARD, gated=gated)
    register(Case(f"fft-conv-{name}", what, _PEER, figure, make, size, _TINY, bar))


_add("forward", "causal convolution", Figure.FORWARD, bar=2.8)
_add("train", "causal convolution, all gradients", Figure.TRAINING, bar=2.2)
_add("memory", "causal convolution, all gradients: extra memory", Figure.MEMORY, bar=3.0)
_add("gated-train", "both directions, skip term and two gates, all gradients", Figure.TRAINING, bar=2.2, gated=True)
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


def _add_half(name: str, what: str, figure: Figure, length: int, bar: float) -> None:
    register(
        Case(
            f"{name}-{length}",
            f"fft_conv, {what}, {length} steps, bf16",
            "rfft and irfft of the whole signal in float32",
            figure,
            partial(build_half, training=figure is Figure.TRAINING),
            {"batch": 64, "channels": 768, "length": length},
            {"batch": 1, "channels": 2, "length": 40},
            bar,
            device="cuda",
            shrinks="batch",
        )
    )


for _length, _bar in ((1024, 6.0), (4096, 5.0), (8192, 4.5), (32768, 2.5)):
    _add_half("conv-gated", "causal, gated", Figure.FORWARD, _length, _bar)
for _length in (1024, 4096, 8192):
    _add_half("conv-bidirectional-train", "both directions, gated", Figure.TRAINING, _length, 4.0)
