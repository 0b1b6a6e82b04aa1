"""The long convolution layer with implicit kernels against its formula in one go."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.case import Case, Figure, Size, Work, draw, register
from benchmarks.cases import fft_conv, implicit_kernel
from benchmarks.differentiable import Inputs, conv_flops, differentiable
from milkweed.nn import LongConv

# That of the kernels, which the convolution hardly adds to.
_TOLERANCE = 1e-4


def build(size: Size) -> Work:
    """A causal layer as it starts, with gradients of the signal and all parameters."""
    batch, d_model, length = size["batch"], size["d_model"], size["length"]
    layer = LongConv(d_model, length)
    parameters = dict(layer.named_parameters())
    # Envelopes fall to 1% within 1.5 to 0.3 of the longest kernel.
    decay = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, d_model, dtype=torch.float64) / (length - 1)

    def ours(tensors: Inputs) -> Tensor:
        own = {name: x for name, x in tensors.items() if name in parameters}
        y: Tensor = functional_call(layer, own, (tensors["u"],))
        return y

    def plain(tensors: Inputs) -> Tensor:
        network = {f"weight_{i}": tensors[f"filter.layers.{i}.weight"] for i in range(4)}
        network |= {f"bias_{i}": tensors[f"filter.layers.{i}.bias"] for i in range(3)}
        network |= {"features": tensors["filter.positions"], "frequency": tensors["filter.frequency"]}
        kernel = implicit_kernel.plain({**network, "decay": decay.to(tensors["u"].dtype)})
        signal = {"u": tensors["u"].transpose(1, 2), "kernel": kernel, "skip": tensors["skip"]}
        return fft_conv.one_shot(signal).transpose(1, 2)

    width = parameters["filter.frequency"].numel()
    return differentiable(
        {"ours": ours, "peer": plain},
        plain,
        {"u": draw(batch, length, d_model, gradient=True), **parameters},
        draw(batch, length, d_model),
        training=True,
        tolerance=_TOLERANCE,
        flops=implicit_kernel.flops(d_model, width, length, training=True)
        + conv_flops(batch, d_model, length, training=True),
    )


register(
    Case(
        "long-conv-layer",
        "long convolution layer with implicit kernels, all gradients",
        "the network over all lags, then one transform of everything",
        Figure.TRAINING,
        build,
        {"batch": 8, "d_model": 256, "length": 4096},
        {"batch": 2, "d_model": 3, "length": 37},
    )
)
