"""The feed-forward part of a wide model, converted, against the dense one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.case import Case, Figure, Outputs, Size, Work, compare, draw, register
from milkweed.convert import MonarchConfig, convert_, densify_

_TOLERANCE = 1e-5


def build(size: Size) -> Work:
    """Convert a feed-forward network, and multiply its factors out again for the other side: the same function."""
    ours, peer = (_network(size) for _ in range(2))
    for model in (ours, peer):
        convert_(model, MonarchConfig(size["nblocks"]))
    densify_(peer)
    x = draw(size["tokens"], size["d_model"])

    def run(model: nn.Module) -> Outputs:
        with torch.no_grad():
            return {"output": model(x)}

    def truth() -> Outputs:
        layers: list[Any] = [ours[0], ours[2]]
        matrices = [layer.matrix().to(dtype=torch.float64).to_dense() for layer in layers]
        with torch.no_grad():
            hidden = F.gelu(x.double() @ matrices[0].T + layers[0].bias.double())
            return {"output": hidden @ matrices[1].T + layers[1].bias.double()}

    entries = sum(parameter.numel() for parameter in ours.parameters())
    return compare(
        lambda: run(ours),
        lambda: run(peer),
        truth,
        _TOLERANCE,
        flops=2 * size["tokens"] * entries,
        bytes=2 * x.nbytes + 4 * entries,
    )


def _network(size: Size) -> nn.Sequential:
    torch.manual_seed(0)
    d_model, d_hidden = size["d_model"], size["d_hidden"]
    return nn.Sequential(nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model)).eval()


register(
    Case(
        "convert-feed-forward",
        "a converted feed-forward network, d_model 2048, nblocks 4",
        "the dense network",
        Figure.FORWARD,
        build,
        {"tokens": 8 * 512, "d_model": 2048, "d_hidden": 8192, "nblocks": 4},
        {"tokens": 6, "d_model": 32, "d_hidden": 64, "nblocks": 4},
        bar=2.2,
    )
)
