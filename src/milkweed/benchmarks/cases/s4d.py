"""Diagonal state spaces: the kernel alone and the whole layer, against the plain formula."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from milkweed import nn, ops
from milkweed.benchmarks.layers import layer_pair, plain_output
from milkweed.benchmarks.pairs import Inputs, tensor_pair
from milkweed.benchmarks.registry import Case, Figure, Pair, Size, register

_KERNEL_SIZE = {"channels": 256, "d_state": 64, "length": 4096}
_KERNEL_TINY = {"channels": 3, "d_state": 8, "length": 37}
_LAYER_SIZE = {"batch": 8, "d_model": 256, "d_state": 64, "length": 4096}
_LAYER_SMALL = {"batch": 4, "d_model": 32, "d_state": 64, "length": 64}
_LAYER_TINY = {"batch": 2, "d_model": 4, "d_state": 8, "length": 37}
_AGAINST_KERNEL = "2 Re of C times the (H, N/2, L) array of exponentials"
# The phase of the fastest mode reaches thousands of radians, of which float32 keeps few digits.
_KERNEL_TOLERANCE = 1e-4
_LAYER_TOLERANCE = 1e-4
_AGAINST_LAYER = "the plain kernel, one transform of the whole signal, GELU, pointwise convolution, GLU"


def plain_kernel(tensors: Inputs) -> Tensor:
    """Evaluate ``2 Re sum_n c_n exp(dt_a_n l)`` with one exponential per channel, mode and lag.

    Args:
        tensors: ``c`` (..., H, N/2, 2) and ``dt_a`` (H, N/2, 2), real pairs, and ``lags`` (L,).

    Returns:
        The kernels (..., H, L).
    """
    c, dt_a = torch.view_as_complex(tensors["c"]), torch.view_as_complex(tensors["dt_a"])
    exponentials = torch.exp(dt_a.unsqueeze(-1) * tensors["lags"])
    return 2 * torch.einsum("...hn,hnl->...hl", c, exponentials).real


def layer_kernels(tensors: Inputs) -> Tensor:
    """Evaluate the kernels of a layer with zero-order hold and B = 1 in that way.

    Args:
        tensors: ``lags`` (L,) and the parameters of [`S4D`][milkweed.nn.S4D] under their names there.

    Returns:
        The kernels (R, H, L) of all readouts.
    """
    a = torch.complex(-torch.exp(tensors["A_real"]), tensors["A_imag"])
    dt_a = torch.exp(tensors["log_dt"]).unsqueeze(-1) * a
    c = torch.view_as_complex(tensors["C"]) * torch.expm1(dt_a) / a
    return plain_kernel({"c": torch.view_as_real(c), "dt_a": torch.view_as_real(dt_a), "lags": tensors["lags"]})


def build_kernel(size: Size, *, training: bool) -> Pair:
    """Draw modes with Re A = -1/2, Im A = pi n, and steps log-uniform between 1e-3 and 1e-1.

    Args:
        size: ``channels``, ``d_state`` (counting both of each conjugate pair) and ``length``.
        training: Whether to measure the backward pass too, with gradients of ``c`` and ``dt_a``.

    Returns:
        The pair.
    """
    generator = torch.Generator().manual_seed(0)
    channels, modes, length = size["channels"], size["d_state"] // 2, size["length"]
    span = torch.rand(channels, 1, generator=generator)
    dt = torch.exp(math.log(1e-3) + span * (math.log(1e-1) - math.log(1e-3)))
    a = torch.stack([torch.full((modes,), -0.5), math.pi * torch.arange(modes)], dim=-1)
    inputs = {
        "c": torch.randn(channels, modes, 2, generator=generator).requires_grad_(training),
        "dt_a": (dt.unsqueeze(-1) * a).requires_grad_(training),
        "lags": torch.arange(length, dtype=torch.float32),
    }
    cotangent = torch.randn(channels, length, generator=generator) if training else None
    return tensor_pair(
        lambda tensors: ops.diagonal_ssm_kernel(tensors["c"], tensors["dt_a"], length),
        plain_kernel,
        inputs,
        cotangent=cotangent,
        tolerance=_KERNEL_TOLERANCE,
    )


def plain_layer(tensors: Inputs) -> Tensor:
    """Run the layer by its formulas, on (B, H, L) throughout.

    Args:
        tensors: ``u`` (B, H, L), ``lags`` (L,) and the parameters of [`S4D`][milkweed.nn.S4D] under their names there.

    Returns:
        The output (B, H, L).
    """
    return plain_output(tensors, layer_kernels(tensors)[0])


def build_layer(size: Size) -> Pair:
    """Make an S4D layer and the plain formulas with its parameters, forward and backward.

    Args:
        size: ``batch``, ``d_model``, ``d_state`` and ``length``.

    Returns:
        The pair, with gradients of the signal and of all parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.S4D(size["d_model"], d_state=size["d_state"], init="lin")
    return layer_pair(layer, plain_layer, size, _LAYER_TOLERANCE)


def _add_kernel(name: str, description: str, bar: float | None, *, training: bool, size: Size = _KERNEL_SIZE) -> None:
    figure = Figure.TRAINING if training else Figure.FORWARD
    make = partial(build_kernel, training=training)
    register(Case(f"s4d-kernel-{name}", description, _AGAINST_KERNEL, figure, make, size, _KERNEL_TINY, bar))


_add_kernel("train", "S4D kernel, gradients of C and dt A", 25.0, training=True)
_add_kernel("forward", "S4D kernel", None, training=False)


def _add_layer(name: str, description: str, bar: float | None, size: Size) -> None:
    register(
        Case(f"s4d-layer-{name}", description, _AGAINST_LAYER, Figure.TRAINING, build_layer, size, _LAYER_TINY, bar)
    )


_add_layer("train", "S4D layer, all gradients", 4.5, _LAYER_SIZE)
_add_layer("train-small", "S4D layer on a short signal, all gradients", None, _LAYER_SMALL)
