"""Monarch products against two batched products with full-size permutes, and against a dense layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Figure, Outputs, Size, Work, draw, register
from benchmarks.differentiable import Inputs, by_backend, differentiable
from milkweed import nn, ops

_TOLERANCE = 2e-5
# One rounding of half precision is 0.002 of the largest entry.
_HALF_TOLERANCE = 1e-2
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


def _operands(size: Size, *, training: bool) -> tuple[nn.MonarchLinear, Inputs]:
    batch, features = size["batch"], size["features"]
    layer = nn.MonarchLinear(features, features, nblocks=size["nblocks"], bias=False)
    with torch.no_grad():
        for factor in (layer.right, layer.left):
            factor.normal_(std=factor.shape[-1] ** -0.5)
    return layer, {"x": draw(batch, features, gradient=training), "right": layer.right, "left": layer.left}


def _against_two_bmm(layer: nn.MonarchLinear, inputs: Inputs, *, training: bool) -> Work:
    return differentiable(
        {"ours": lambda tensors: layer(tensors["x"]), "peer": two_bmm},
        two_bmm,
        inputs,
        draw(*inputs["x"].shape),
        training=training,
        tolerance=_TOLERANCE,
        flops=(3 if training else 1) * _flops(inputs),
    )


def _flops(inputs: Inputs) -> int:
    return 2 * len(inputs["x"]) * (inputs["right"].numel() + inputs["left"].numel())


def build(size: Size, *, training: bool) -> Work:
    """A square ``MonarchLinear`` and the two products with its weights, in training with all gradients."""
    return _against_two_bmm(*_operands(size, training=training), training=training)


def build_dense(size: Size) -> Work:
    """A ``MonarchLinear`` and a dense layer that holds the same matrix."""
    layer, inputs = _operands(size, training=False)
    exact = {"right": layer.right.detach().double(), "left": layer.left.detach().double()}
    weight = two_bmm({"x": torch.eye(size["features"], dtype=torch.float64), **exact}).T.float().contiguous()
    work = _against_two_bmm(layer, inputs, training=False)
    return replace(work, sides={**work.sides, "peer": lambda: {"output": F.linear(inputs["x"], weight)}})


def build_half(size: Size, *, dense: bool) -> Work:
    """A product in bfloat16 against the two products, or a dense layer of another matrix; 64 rows are compared."""
    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    side, half = n // nblocks, torch.bfloat16
    x = draw(tokens, n, dtype=half)
    factors = {name: draw(nblocks, side, side, dtype=half, scale=side**-0.5) for name in ("right", "left")}

    def ours(tensors: Inputs, backend: str | None) -> Tensor:
        return ops.monarch_mm(tensors["x"], tensors["right"], tensors["left"], backend=backend)

    work = differentiable(
        by_backend(ours, two_bmm),
        two_bmm,
        {"x": x, **factors},
        draw(tokens, n, dtype=half),
        training=False,
        tolerance=_HALF_TOLERANCE,
        flops=_flops({"x": x, **factors}),
        part=lambda name, tensor: tensor[:64] if name in {"x", "output"} else tensor,
    )
    if not dense:
        return work
    weight = draw(n, n, dtype=half, scale=n**-0.5)

    def truth() -> Mapping[str, Outputs]:
        return {**work.truth(), "peer": {"output": F.linear(x[:64].double(), weight.double())}}

    return replace(work, sides={**work.sides, "peer": lambda: {"output": F.linear(x, weight)}}, truth=truth)


def _add_square(nblocks: int, bar: float) -> None:
    size = _SIZE | {"nblocks": nblocks}
    what = f"MonarchLinear, nblocks {nblocks}"
    forward, training = partial(build, training=False), partial(build, training=True)
    register(Case(f"monarch-forward-{nblocks}", what, _TWO_BMM, Figure.FORWARD, forward, size, _TINY, bar, 0.85))
    what_else = f"{what}, all gradients"
    register(Case(f"monarch-train-{nblocks}", what_else, _TWO_BMM, Figure.TRAINING, training, size, _TINY, None, 0.85))
    register(Case(f"monarch-dense-{nblocks}", what, _DENSE, Figure.FORWARD, build_dense, size, _TINY, None, 0.85))


_add_square(4, bar=1.3)
_add_square(16, bar=1.6)
_add_square(64, bar=1.6)
_small = "MonarchLinear, a small layer"
register(Case("monarch-forward-small", _small, _TWO_BMM, Figure.FORWARD, partial(build, training=False), _SMALL, _TINY))
register(Case("monarch-dense-small", _small, _DENSE, Figure.FORWARD, build_dense, _SMALL, _TINY))


def _add_half(name: str, peer: str, nblocks: int, bar: float | None) -> None:
    register(
        Case(
            f"monarch-{nblocks}-{name}",
            f"monarch_mm, n = 4096, {nblocks} blocks, bf16",
            peer,
            Figure.FORWARD,
            partial(build_half, dense=name == "linear"),
            {"tokens": 8192, "features": 4096, "nblocks": nblocks},
            {"tokens": 70, "features": 64, "nblocks": 4},
            bar,
            2 / 3,
            device="cuda",
            shrinks="tokens",
        )
    )


# With four blocks 70% of the ratio of operations, which is 2.
_add_half("linear", "torch.nn.Linear", 4, bar=1.4)
_add_half("formula", _TWO_BMM, 4, bar=2.0)
_add_half("linear", "torch.nn.Linear", 16, bar=None)
_add_half("formula", _TWO_BMM, 16, bar=2.0)
