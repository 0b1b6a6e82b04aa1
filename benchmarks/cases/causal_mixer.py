"""The causal Monarch mixer against the same maps as dense matrices."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Size, Work, draw, register
from benchmarks.cases.fft_conv import one_shot
from benchmarks.differentiable import Inputs, conv_flops, differentiable
from milkweed.nn import CausalMonarchMixer

# Two changes of basis around a convolution, each with sums over the length.
_TOLERANCE = 1e-4


def build(size: Size) -> Work:
    """A layer of order 2 with factors as training might leave them; the dense matrices are made once."""
    batch, d_model, length = size["batch"], size["d_model"], size["length"]
    layer = CausalMonarchMixer(d_model, length)
    around = (*layer.output_factors, *layer.input_factors)
    with torch.no_grad():
        for factor in (*around, *layer.kernel_factors):
            factor.copy_(draw(*factor.shape, scale=0.1 / factor.shape[-1]))
    exact = copy.deepcopy(layer).double()

    @functools.cache
    @torch.no_grad()
    def dense(dtype: torch.dtype) -> tuple[Tensor, ...]:
        # At the first call, as no memory would do for them at the lengths at which growth is measured.
        bases, identity = exact.bases(), torch.eye(length, dtype=torch.float64)[None]
        into, out_of = bases["input_basis"].to_polynomial(identity), bases["output_basis"].from_polynomial(identity)
        kernel = bases["kernel_basis"].to_polynomial(exact.lags(length)[None])[0]
        return into[0].to(dtype), out_of[0].to(dtype), kernel.to(dtype), exact.D.to(dtype)

    def ours(tensors: Inputs) -> Tensor:
        y: Tensor = layer(tensors["u"].transpose(1, 2)).transpose(1, 2)
        return y

    def plain(tensors: Inputs) -> Tensor:
        u = tensors["u"]
        into, out_of, kernel, D = dense(u.dtype)
        return one_shot({"u": u @ into, "kernel": kernel}) @ out_of + D[:, None] * u

    products = 2 * batch * d_model * sum(factor.numel() for factor in around)
    return differentiable(
        {"ours": ours, "peer": plain},
        plain,
        {"u": draw(batch, d_model, length)},
        draw(batch, d_model, length),
        training=False,
        tolerance=_TOLERANCE,
        flops=products + conv_flops(batch, d_model, length, training=False),
    )


register(
    Case(
        "causal-mixer-layer",
        "causal Monarch mixer of order 2",
        "the same changes of basis as dense matrices",
        Figure.FORWARD,
        build,
        {"batch": 8, "d_model": 64, "length": 4096},
        {"batch": 2, "d_model": 3, "length": 37},
    )
)
