"""Steps of a long convolution after a context: tiles of doubling size against a sum over the past at every step."""

from __future__ import annotations

import torch

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register
from milkweed.nn import OnlineConv

_TOLERANCE = 2e-5


def build(size: Size) -> Pair:
    """Draw a decaying kernel, a context that was read, and the steps after it.

    Args:
        size: ``batch``, ``channels``, ``context`` and ``steps``.

    Returns:
        The pair; a call takes all the steps.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, context, steps = size["batch"], size["channels"], size["context"], size["steps"]
    length = context + steps
    decay = torch.exp(-4 * torch.arange(length) / length)
    kernel = torch.randn(channels, length, generator=generator) * decay
    u = torch.randn(batch, length, channels, generator=generator)
    online = OnlineConv(kernel)
    _, start = online.read(u[:, :context], online.initial_state(batch))
    past = u.mT.contiguous()

    def ours() -> Outputs:
        outputs, state = [], start
        for t in range(context, length):
            y, state = online(u[:, t], state)
            outputs.append(y)
        return {"output": torch.stack(outputs, 1)}

    def sums(past: torch.Tensor, kernel: torch.Tensor) -> Outputs:
        backward = kernel.flip(-1)
        outputs = [
            torch.linalg.vecdot(past[..., : t + 1], backward[:, length - 1 - t :]) for t in range(context, length)
        ]
        return {"output": torch.stack(outputs, 1)}

    return Pair(
        ours=ours,
        baseline=lambda: sums(past, kernel),
        reference=lambda: sums(past.double(), kernel.double()),
        tolerance=_TOLERANCE,
    )


def _add(name: str, description: str, size: Size) -> None:
    tiny = {"batch": 2, "channels": 3, "context": 41, "steps": 60}
    against = "a sum over the past at every step"
    register(Case(f"online-conv{name}", description, against, Figure.FORWARD, build, size, tiny))


_add("", "1024 steps after a context of 3072", {"batch": 1, "channels": 768, "context": 3072, "steps": 1024})
_add(
    "-short",
    "128 steps after a context of 128",
    {"batch": 1, "channels": 64, "context": 128, "steps": 128},
)
