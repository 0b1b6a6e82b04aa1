"""Steps of a long convolution after a context: tiles of doubling size against a sum over the past at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Outputs, Size, Work, compare, draw, register
from benchmarks.differentiable import conv_flops
from milkweed.nn import OnlineConv

_TOLERANCE = 2e-5


def build(size: Size) -> Work:
    """A decaying kernel, a context that was read, and the steps after it; a call takes all the steps."""
    batch, channels, context, steps = size["batch"], size["channels"], size["context"], size["steps"]
    length = context + steps
    kernel = draw(channels, length) * torch.exp(-4 * torch.arange(length) / length)
    u = draw(batch, length, channels)
    online = OnlineConv(kernel)
    _, start = online.read(u[:, :context], online.initial_state(batch))
    past = u.mT.contiguous()

    def ours() -> Outputs:
        outputs, state = [], start
        for t in range(context, length):
            y, state = online(u[:, t], state)
            outputs.append(y)
        return {"output": torch.stack(outputs, 1)}

    def sums(past: Tensor, kernel: Tensor) -> Outputs:
        backward = kernel.flip(-1)
        outputs = [
            torch.linalg.vecdot(past[..., : t + 1], backward[:, length - 1 - t :]) for t in range(context, length)
        ]
        return {"output": torch.stack(outputs, 1)}

    # What a convolution of these steps would need that knew them all beforehand.
    return compare(
        ours,
        lambda: sums(past, kernel),
        lambda: sums(past.double(), kernel.double()),
        _TOLERANCE,
        flops=conv_flops(batch, channels, steps, training=False),
        bytes=u.nbytes + kernel.nbytes + 4 * batch * steps * channels,
    )


def _add(name: str, description: str, size: Size) -> None:
    tiny = {"batch": 2, "channels": 3, "context": 41, "steps": 60}
    register(Case(name, description, "a sum over the past at every step", Figure.FORWARD, build, size, tiny))


_add(
    "online-conv",
    "1024 steps after a context of 3072",
    {"batch": 1, "channels": 768, "context": 3072, "steps": 1024},
)
_add(
    "online-conv-short", "128 steps after a context of 128", {"batch": 1, "channels": 64, "context": 128, "steps": 128}
)
