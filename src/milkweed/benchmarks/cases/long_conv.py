"""The long convolution layer with implicit kernels against its formula in one go."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from milkweed.benchmarks.cases import fft_conv, implicit_kernel
from milkweed.benchmarks.pairs import Inputs, tensor_pair
from milkweed.benchmarks.registry import Case, Figure, Pair, Size, register
from milkweed.nn import LongConv

# That of the kernels, which the convolution hardly adds to.
_TOLERANCE = 1e-4
_SIZE = {"batch": 8, "d_model": 256, "length": 4096}
_TINY = {"batch": 2, "d_model": 3, "length": 37}


def build(size: Size) -> Pair:
    """Make a causal layer as it starts, and a signal.

    Args:
        size: ``batch``, ``d_model`` and ``length``.

    Returns:
        The pair, with gradients of the signal and all parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LongConv(size["d_model"], size["length"])
        u = torch.randn(size["batch"], size["length"], size["d_model"], requires_grad=True)
        cotangent = torch.randn_like(u)
    parameters = dict(layer.named_parameters())
    decay = layer.filter._decay()

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

    return tensor_pair(ours, plain, {"u": u, **parameters}, cotangent=cotangent, tolerance=_TOLERANCE)


register(
    Case(
        "long-conv-layer",
        "long convolution layer with implicit kernels, all gradients",
        "the network over all lags, then one transform of everything",
        Figure.TRAINING,
        build,
        _SIZE,
        _TINY,
    )
)
