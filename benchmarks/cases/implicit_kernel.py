"""Kernels from a network of sines against the formula over all lags at once."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Figure, Size, Work, draw, register
from benchmarks.differentiable import Inputs, differentiable
from milkweed import ops

# Three sines of frequency 10 raise the rounding of their arguments. Measured 7e-6, and as much for the plain formula.
_TOLERANCE = 5e-5
_NETWORK = ("weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2", "weight_3")
_SIZE = {"channels": 768, "width": 128, "length": 8192}
_LONG = {"channels": 768, "width": 128, "length": 32768}
_SHORT = {"channels": 768, "width": 128, "length": 128}
_TINY = {"channels": 3, "width": 4, "length": 37}
_FEATURES = 5


def plain(tensors: Inputs) -> Tensor:
    """Evaluate the network lag by lag in rows, then the envelope.

    Args:
        tensors: ``features`` (L, 5), ``frequency`` (W,), ``weight_0`` ... ``weight_3`` and ``bias_0`` ... ``bias_2``,
            ``decay`` (D,).

    Returns:
        (D, L).
    """
    x = tensors["features"]
    for i in range(3):
        x = torch.sin(tensors["frequency"] * F.linear(x, tensors[f"weight_{i}"], tensors[f"bias_{i}"]))
    lags = torch.arange(len(x))
    return (x @ tensors["weight_3"].T * torch.exp(-lags[:, None] * tensors["decay"])).T


def flops(channels: int, width: int, length: int, *, training: bool) -> float:
    """Of the products of a network; its sines are not counted."""
    return (3 if training else 1) * 2.0 * length * width * (_FEATURES + 2 * width + channels)


def _ours(tensors: Inputs) -> Tensor:
    network = [tensors[name] for name in _NETWORK]
    return ops.implicit_kernel(tensors["features"], tensors["frequency"], network, tensors["decay"])


def build(size: Size, *, training: bool) -> Work:
    """Features and a network as layers start with them; gradients of everything but the envelope."""
    channels, width, length = size["channels"], size["width"], size["length"]

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return (2 * torch.rand(*shape) - 1) / fan_in**0.5

    inputs = {"features": uniform(length, _FEATURES, fan_in=1), "frequency": torch.full((width,), 10.0)}
    for i, fan in enumerate((_FEATURES, width, width)):
        inputs |= {f"weight_{i}": uniform(width, fan, fan_in=fan), f"bias_{i}": uniform(width, fan_in=fan)}
    inputs["weight_3"] = uniform(channels, width, fan_in=width)
    for x in inputs.values():
        x.requires_grad_(training)
    inputs["decay"] = torch.linspace(3, 15, channels) / length
    return differentiable(
        {"ours": _ours, "peer": plain},
        plain,
        inputs,
        draw(channels, length),
        training=training,
        tolerance=_TOLERANCE,
        flops=flops(channels, width, length, training=training),
    )


def _add(name: str, description: str, figure: Figure, size: Size = _SIZE) -> None:
    make = partial(build, training=figure is not Figure.FORWARD)
    peer = "the network over all lags at once, then its envelope"
    register(Case(f"implicit-kernel-{name}", description, peer, figure, make, size, _TINY))


_add("forward", "implicit kernels", Figure.FORWARD)
_add("train", "implicit kernels, all gradients", Figure.TRAINING)
_add("memory", "implicit kernels, all gradients: extra memory", Figure.MEMORY)
_add("forward-long", "implicit kernels of 32K lags", Figure.FORWARD, _LONG)
_add("forward-short", "implicit kernels of 128 lags", Figure.FORWARD, _SHORT)
_add("train-short", "implicit kernels of 128 lags, all gradients", Figure.TRAINING, _SHORT)
