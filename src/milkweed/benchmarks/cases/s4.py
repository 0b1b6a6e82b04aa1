"""Diagonal plus low-rank state spaces: the kernel alone and the whole layer, against the generating function."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed import nn, ssm
from milkweed.benchmarks.layers import layer_pair, plain_output
from milkweed.benchmarks.pairs import Inputs, tensor_pair
from milkweed.benchmarks.registry import Case, Figure, Pair, Size, register

_SIZE = {"batch": 8, "d_model": 256, "d_state": 64, "length": 4096}
_TINY = {"batch": 2, "d_model": 4, "d_state": 8, "length": 37}
_TOLERANCE = 1e-3


def plain_kernel(tensors: Inputs) -> Tensor:
    """Evaluate the kernel by Cauchy sums at the roots of unity.

    Args:
        tensors: The parameters of [`S4`][milkweed.nn.S4] under their names there.

    Returns:
        The kernel (H, L), L from ``lags``.
    """
    Lambda = torch.complex(-torch.exp(tensors["A_real"]), tensors["A_imag"])
    P, B, C = (torch.view_as_complex(tensors[name]) for name in ("P", "B", "C"))
    return ssm.cauchy_kernel(Lambda, P, B, C[0], torch.exp(tensors["log_dt"]), len(tensors["lags"]))


def _layer(size: Size) -> nn.S4:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.S4(size["d_model"], d_state=size["d_state"])


def build_kernel(size: Size) -> Pair:
    """Take the kernel of an S4 layer with LegS, everything trainable, forward and backward.

    Args:
        size: ``d_model``, ``d_state`` and ``length``.

    Returns:
        The pair, with gradients of all parameters of the system.
    """
    layer, length = _layer(size), size["length"]
    own = ("log_dt", "A_real", "A_imag", "P", "B", "C")
    inputs = {name: p for name, p in layer.named_parameters() if name in own}
    cotangent = torch.randn(size["d_model"], length, generator=torch.Generator().manual_seed(0))
    return tensor_pair(
        lambda tensors: layer.system().kernel(length)[0],
        plain_kernel,
        {**inputs, "lags": torch.arange(length, dtype=torch.float32)},
        cotangent=cotangent,
        tolerance=_TOLERANCE,
    )


def build_layer(size: Size) -> Pair:
    """Make an S4 layer with LegS and the plain formulas with its parameters, forward and backward.

    Args:
        size: ``batch``, ``d_model``, ``d_state`` and ``length``.

    Returns:
        The pair, with gradients of the signal and of all parameters.
    """
    return layer_pair(_layer(size), lambda tensors: plain_output(tensors, plain_kernel(tensors)), size, _TOLERANCE)


register(
    Case(
        "s4-kernel-train",
        "S4 kernel (LegS), gradients of all parameters",
        "generating function at the roots of unity by Cauchy sums, Woodbury, inverse FFT",
        Figure.TRAINING,
        build_kernel,
        _SIZE,
        _TINY,
    )
)
register(
    Case(
        "s4-layer-train",
        "S4 layer (LegS), all gradients",
        "the plain kernel, one transform of the whole signal, GELU, pointwise convolution, GLU",
        Figure.TRAINING,
        build_layer,
        _SIZE,
        _TINY,
    )
)
