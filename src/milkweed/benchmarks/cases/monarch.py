"""Monarch products against two batched products with full-size permutes, and against a dense layer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from milkweed import nn
from milkweed.benchmarks.pairs import Inputs, tensor_pair
from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register

_TOLERANCE = 2e-5
_SIZE = {"batch": 2048, "features": 4096}
_SMALL = {"batch": 8, "features": 256, "nblocks": 4}
_TINY = {"batch": 3, "features": 32, "nblocks": 4}
_TWO_BMM = "two bmm with full-size permutes"
_DENSE = "the same matrix in a dense layer"


def two_bmm(tensors: Inputs) -> Tensor:
    """Multiply by a Monarch matrix with one batched product per factor and a permute of everything after each.

    Args:
        tensors: ``x`` (batch, k p), ``right`` (k, q, p) and ``left`` (l, s, r) with l r = k q and q a multiple of l.

    Returns:
        (batch, s l): position ``l_total * i + j`` holds row i of left block j.
    """
    x, right, left = tensors["x"], tensors["right"], tensors["left"]
    batch = x.shape[0]
    k, q, p = right.shape
    l_total, s, r = left.shape
    hidden = torch.bmm(x.reshape(batch, k, p).transpose(0, 1), right.transpose(1, 2))
    # Feature k q_total + q of the hidden vector is input (k q_total + q) // l of left block (k q_total + q) % l.
    hidden = hidden.reshape(k, batch, q // l_total, l_total).permute(3, 1, 0, 2).reshape(l_total, batch, r)
    return torch.bmm(hidden, left.transpose(1, 2)).permute(1, 2, 0).reshape(batch, s * l_total)


def build(size: Size, *, training: bool) -> Pair:
    """Make a square ``MonarchLinear`` and the two batched products with its weights.

    Args:
        size: ``batch``, ``features`` (a multiple of the square of nblocks) and ``nblocks``.
        training: Whether to measure the backward pass too, with gradients of the input and both factors.

    Returns:
        The pair.
    """
    layer, x, cotangent = _draw(size)
    inputs = {"x": x.requires_grad_(training), "right": layer.right, "left": layer.left}
    return tensor_pair(
        lambda tensors: layer(tensors["x"]),
        two_bmm,
        inputs,
        cotangent=cotangent if training else None,
        tolerance=_TOLERANCE,
    )


def build_dense(size: Size) -> Pair:
    """Make a ``MonarchLinear`` and a dense layer that holds the same matrix; forward pass only.

    Args:
        size: As for [`build`][milkweed.benchmarks.cases.monarch.build].

    Returns:
        The pair.
    """
    layer, x, _ = _draw(size)
    exact = {"right": layer.right.detach().double(), "left": layer.left.detach().double()}
    identity = torch.eye(size["features"], dtype=torch.float64)
    weight = two_bmm({"x": identity, **exact}).T.to(x.dtype).contiguous()

    @torch.no_grad()
    def dense() -> Outputs:
        return {"output": F.linear(x, weight)}

    return replace(build(size, training=False), baseline=dense)


def _draw(size: Size) -> tuple[nn.MonarchLinear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, features = size["batch"], size["features"]
    layer = nn.MonarchLinear(features, features, nblocks=size["nblocks"], bias=False)
    with torch.no_grad():
        for factor in (layer.right, layer.left):
            factor.normal_(std=factor.shape[-1] ** -0.5, generator=generator)
    x, cotangent = (torch.randn(batch, features, generator=generator) for _ in range(2))
    return layer, x, cotangent


def _add_square(nblocks: int, bar: float) -> None:
    size = _SIZE | {"nblocks": nblocks}
    what = f"MonarchLinear, nblocks {nblocks}"
    forward, training = partial(build, training=False), partial(build, training=True)
    register(Case(f"monarch-forward-{nblocks}", what, _TWO_BMM, Figure.FORWARD, forward, size, _TINY, bar))
    register(
        Case(f"monarch-train-{nblocks}", f"{what}, all gradients", _TWO_BMM, Figure.TRAINING, training, size, _TINY)
    )
    # Two factors of n^2 / nblocks entries each, against n^2.
    ideal = nblocks / 2
    register(Case(f"monarch-dense-{nblocks}", what, _DENSE, Figure.FORWARD, build_dense, size, _TINY, ideal=ideal))


_add_square(4, bar=1.3)
_add_square(16, bar=1.6)
_add_square(64, bar=1.6)
register(
    Case(
        "monarch-forward-small",
        "MonarchLinear, a small layer",
        _TWO_BMM,
        Figure.FORWARD,
        partial(build, training=False),
        _SMALL,
        _TINY,
    )
)
register(
    Case(
        "monarch-dense-small",
        "MonarchLinear, a small layer",
        _DENSE,
        Figure.FORWARD,
        build_dense,
        _SMALL,
        _TINY,
        ideal=_SMALL["nblocks"] / 2,
    )
)
