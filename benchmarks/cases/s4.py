"""Diagonal plus low-rank state spaces: the kernel alone and the whole layer, against the generating function."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Size, Work, draw, place, register
from benchmarks.differentiable import (
    Inputs,
    by_backend,
    conv_flops,
    dense_kernel_flops,
    differentiable,
    mix_flops,
)
from benchmarks.state_space import (
    THREE_PASSES,
    by_equation,
    kernel_share,
    layer_work,
    plain_output,
    register_large,
)
from milkweed import nn, ops, ssm

_SIZE = {"batch": 8, "d_model": 256, "d_state": 64, "length": 4096}
_TINY = {"batch": 2, "d_model": 4, "d_state": 8, "length": 37}
_TOLERANCE = 1e-3
# Tensors of a slow mode, differentiated: the generating function in float32 errs by 1e-2 and more.
_LARGE_TOLERANCES = {"ours": _TOLERANCE, "eager": _TOLERANCE, "peer": 0.2}


def plain_kernel(tensors: Inputs) -> Tensor:
    """The kernel (H, L) by Cauchy sums at the roots of unity, from the parameters of ``S4`` and ``lags`` (L,)."""
    Lambda = torch.complex(-torch.exp(tensors["A_real"]), tensors["A_imag"])
    P, B, C = (torch.view_as_complex(tensors[name]) for name in ("P", "B", "C"))
    return ssm.cauchy_kernel(Lambda, P, B, C[0], torch.exp(tensors["log_dt"]), len(tensors["lags"]))


def build_kernel(size: Size, *, triton: bool = False, share: bool = False) -> Work:
    """The kernel of an S4 layer with LegS, everything trainable, forward and backward.

    With Triton four channels are compared, and the kernel may stand against its whole layer.
    """
    d_model, d_state, length = size["d_model"], size["d_state"], size["length"]
    layer: Any = place(lambda: nn.S4(d_model, d_state=d_state))

    def ours(tensors: Inputs, backend: str | None) -> Tensor:
        with ops.use_backend(backend) if backend else nullcontext():
            kernel: Tensor = layer.filter.system().kernel(length)[0]
            return kernel

    def four_channels(name: str, x: Tensor) -> Tensor:
        return x if name == "lags" or not triton else x[:, :4] if name in {"P", "C"} else x[:4]

    own = ("log_dt", "A_real", "A_imag", "P", "B", "C")
    parameters = {name: p for name, p in by_equation(layer).items() if name in own}
    work = differentiable(
        by_backend(ours, plain_kernel, triton=triton),
        plain_kernel,
        {**parameters, "lags": torch.arange(length, dtype=torch.float32)},
        draw(d_model, length),
        training=True,
        tolerance=_LARGE_TOLERANCES if triton else _TOLERANCE,
        flops=dense_kernel_flops(d_model, d_state, length) * (THREE_PASSES if triton else 1),
        part=four_channels,
    )
    return kernel_share(work, layer, size) if share else work


def build_layer(size: Size) -> Work:
    """An S4 layer with LegS, with gradients of the signal and of all parameters."""
    batch, d_model, d_state, length = (size[name] for name in ("batch", "d_model", "d_state", "length"))
    flops = (
        dense_kernel_flops(d_model, d_state, length)
        + conv_flops(batch, d_model, length, training=True)
        + mix_flops(batch * length, d_model)
    )
    layer = nn.S4(d_model, d_state=d_state)
    return layer_work(layer, lambda tensors: plain_output(tensors, plain_kernel(tensors)), size, _TOLERANCE, flops)


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
        floor_bar=0.6,
    )
)
register_large("s4", build_kernel, "the generating function by Cauchy sums", 10.0)
