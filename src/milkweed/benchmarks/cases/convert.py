"""The feed-forward part of a wide model, converted, against the dense one."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register
from milkweed.convert import MonarchConfig, convert_, densify_

_TOLERANCE = 1e-5
_SIZE = {"tokens": 8 * 512, "d_model": 2048, "d_hidden": 8192, "nblocks": 4}
_TINY = {"tokens": 6, "d_model": 32, "d_hidden": 64, "nblocks": 4}


def build(size: Size) -> Pair:
    """Convert a feed-forward network, and multiply its factors out again for the other side: the same function.

    Args:
        size: ``tokens``, ``d_model``, ``d_hidden`` and ``nblocks``.

    Returns:
        The pair.
    """
    ours, baseline = (_network(size) for _ in range(2))
    for model in (ours, baseline):
        convert_(model, MonarchConfig(size["nblocks"]))
    densify_(baseline)
    x = torch.randn(size["tokens"], size["d_model"], generator=torch.Generator().manual_seed(1))

    def run(model: nn.Module) -> Outputs:
        with torch.no_grad():
            return {"output": model(x)}

    def reference() -> Outputs:
        matrices = [layer.matrix().to(dtype=torch.float64).to_dense() for layer in (ours[0], ours[2])]
        with torch.no_grad():
            hidden = F.gelu(x.double() @ matrices[0].T + ours[0].bias.double())
            return {"output": hidden @ matrices[1].T + ours[2].bias.double()}

    return Pair(lambda: run(ours), lambda: run(baseline), reference, _TOLERANCE)


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
        _SIZE,
        _TINY,
        bar=2.2,
    )
)
