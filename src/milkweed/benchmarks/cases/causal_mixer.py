"""The causal Monarch mixer against the same maps as dense matrices."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from milkweed.benchmarks.cases import fft_conv
from milkweed.benchmarks.pairs import Inputs, tensor_pair
from milkweed.benchmarks.registry import Case, Figure, Pair, Size, register
from milkweed.nn import CausalMonarchMixer

# Two changes of basis around a convolution, each with sums over the length.
_TOLERANCE = 1e-4
_SIZE = {"batch": 8, "d_model": 64, "length": 4096}
_TINY = {"batch": 2, "d_model": 3, "length": 37}


def build(size: Size) -> Pair:
    """Draw a layer of order 2 with factors as training might leave them, and a signal.

    Args:
        size: ``batch``, ``d_model`` and ``length``.

    Returns:
        The pair, forward. The dense matrices are made once, the inverse among them.
    """
    generator = torch.Generator().manual_seed(0)
    length = size["length"]
    layer = CausalMonarchMixer(size["d_model"], length)
    with torch.no_grad():
        for factor in (*layer.output_factors, *layer.kernel_factors, *layer.input_factors):
            factor.copy_(torch.randn(factor.shape, generator=generator) * (0.1 / factor.shape[-1]))
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
        return fft_conv.one_shot({"u": u @ into, "kernel": kernel}) @ out_of + D[:, None] * u

    u = torch.randn(size["batch"], size["d_model"], length, generator=generator)
    return tensor_pair(ours, plain, {"u": u}, cotangent=None, tolerance=_TOLERANCE)


register(
    Case(
        "causal-mixer-layer",
        "causal Monarch mixer of order 2",
        "the same changes of basis as dense matrices",
        Figure.FORWARD,
        build,
        _SIZE,
        _TINY,
    )
)
