"""Diagonal state spaces: the kernel alone and the whole layer, against the plain formula."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Size, Work, draw, place, register
from benchmarks.differentiable import (
    Inputs,
    by_backend,
    conv_flops,
    diagonal_kernel_flops,
    differentiable,
    mix_flops,
)
from benchmarks.state_space import THREE_PASSES, kernel_share, layer_work, plain_output, register_large
from milkweed import nn, ops

_KERNEL_SIZE = {"d_model": 256, "d_state": 64, "length": 4096}
_KERNEL_TINY = {"d_model": 3, "d_state": 8, "length": 37}
_LAYER_SIZE = {"batch": 8, "d_model": 256, "d_state": 64, "length": 4096}
_LAYER_SMALL = {"batch": 4, "d_model": 32, "d_state": 64, "length": 64}
_LAYER_TINY = {"batch": 2, "d_model": 4, "d_state": 8, "length": 37}
_KERNEL_PEER = "2 Re of C times the (H, N/2, L) array of exponentials"
_LAYER_PEER = "the plain kernel, one transform of the whole signal, GELU, pointwise convolution, GLU"
# The phase of the fastest mode reaches thousands of radians, of which float32 keeps few digits.
_KERNEL_TOLERANCE = 1e-4
_LAYER_TOLERANCE = 1e-4
# Over 16,384 steps the plain formula, which multiplies angles and steps in float32, loses more.
_LARGE_TOLERANCES = {"ours": 1e-4, "eager": 1e-4, "peer": 1e-2}


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
    """The kernels (R, H, L) of all readouts of a layer with zero-order hold and B = 1, in that way.

    Takes ``lags`` (L,) and the parameters of ``S4D`` under their names there.
    """
    a = torch.complex(-torch.exp(tensors["A_real"]), tensors["A_imag"])
    dt_a = torch.exp(tensors["log_dt"]).unsqueeze(-1) * a
    c = torch.view_as_complex(tensors["C"]) * torch.expm1(dt_a) / a
    return plain_kernel({"c": torch.view_as_real(c), "dt_a": torch.view_as_real(dt_a), "lags": tensors["lags"]})


def build_kernel(size: Size, *, training: bool = True, triton: bool = False, share: bool = False) -> Work:
    """A kernel with Re A = -1/2, Im A = pi n, steps log-uniform between 1e-3 and 1e-1; gradients of ``c``, ``dt_a``.

    With Triton four channels are compared, and the kernel may stand against a whole layer of its size.
    """
    d_model, d_state, length = size["d_model"], size["d_state"], size["length"]
    dt = 10 ** (-3 + 2 * torch.rand(d_model, 1, 1))
    a = torch.stack([torch.full((d_state // 2,), -0.5), math.pi * torch.arange(d_state // 2)], dim=-1)
    inputs = {
        "c": draw(d_model, d_state // 2, 2, gradient=training),
        "dt_a": (dt * a).requires_grad_(training),
        "lags": torch.arange(length, dtype=torch.float32),
    }

    def ours(tensors: Inputs, backend: str | None) -> Tensor:
        return ops.diagonal_ssm_kernel(tensors["c"], tensors["dt_a"], length, backend=backend)

    work = differentiable(
        by_backend(ours, plain_kernel, triton=triton),
        plain_kernel,
        inputs,
        draw(d_model, length),
        training=training,
        tolerance=_LARGE_TOLERANCES if triton else _KERNEL_TOLERANCE,
        flops=diagonal_kernel_flops(d_model, d_state, length, training=training) * (THREE_PASSES if triton else 1),
        part=lambda name, x: x[:4] if triton and name != "lags" else x,
    )
    return kernel_share(work, place(lambda: nn.S4D(d_model, d_state=d_state)), size) if share else work


def plain_layer(tensors: Inputs) -> Tensor:
    """The layer by its formulas, on (B, H, L) throughout."""
    return plain_output(tensors, layer_kernels(tensors)[0])


def build_layer(size: Size) -> Work:
    """An S4D layer, with gradients of the signal and of all parameters."""
    batch, d_model, d_state, length = (size[name] for name in ("batch", "d_model", "d_state", "length"))
    flops = (
        diagonal_kernel_flops(d_model, d_state, length, training=True)
        + conv_flops(batch, d_model, length, training=True)
        + mix_flops(batch * length, d_model)
    )
    return layer_work(nn.S4D(d_model, d_state=d_state, init="lin"), plain_layer, size, _LAYER_TOLERANCE, flops)


def _add_kernel(name: str, description: str, bar: float | None, figure: Figure) -> None:
    make = partial(build_kernel, training=figure is Figure.TRAINING)
    register(Case(f"s4d-kernel-{name}", description, _KERNEL_PEER, figure, make, _KERNEL_SIZE, _KERNEL_TINY, bar))


def _add_layer(name: str, description: str, size: Size, bar: float | None, floor_bar: float | None) -> None:
    register(Case(name, description, _LAYER_PEER, Figure.TRAINING, build_layer, size, _LAYER_TINY, bar, floor_bar))


_add_kernel("train", "S4D kernel, gradients of C and dt A", 25.0, Figure.TRAINING)
_add_kernel("forward", "S4D kernel", None, Figure.FORWARD)
_add_layer("s4d-layer-train", "S4D layer, all gradients", _LAYER_SIZE, 4.5, 0.6)
_add_layer("s4d-layer-train-small", "S4D layer on a short signal, all gradients", _LAYER_SMALL, None, None)
register_large("s4d", build_kernel, "the (H, N/2, L) array of exponentials", 30.0)
