"""One more token: a step of the recurrence against the whole context once more."""

from __future__ import annotations

import torch

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register
from milkweed.models import SequenceModel

_TOLERANCE = 1e-4


def build(size: Size) -> Pair:
    """Make a stack of S4D layers that has read a context, and its next input.

    Args:
        size: ``batch``, ``d_model``, ``depth`` and ``context``, the steps up to and with the next one.

    Returns:
        The pair; a call gives the output after the next step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SequenceModel(1, 16, size["d_model"], size["depth"], {"name": "s4d"}, pooling="none").eval()
        u = torch.randn(size["batch"], size["context"], 1)
    stepper = model.stepper()
    _, state = stepper.read(u[:, :-1], stepper.initial_state(size["batch"]))
    exact, exact_u = SequenceModel(**model.options).double().eval(), u.double()
    exact.load_state_dict(model.state_dict())

    def ours() -> Outputs:
        return {"output": stepper(u[:, -1], state)[0]}

    @torch.no_grad()
    def baseline() -> Outputs:
        return {"output": model(u)[:, -1]}

    @torch.no_grad()
    def reference() -> Outputs:
        return {"output": exact(exact_u)[:, -1]}

    return Pair(ours, baseline, reference, _TOLERANCE)


register(
    Case(
        "decode-s4d",
        "one step of six S4D layers",
        "the whole context of 1024 steps through the same layers",
        Figure.FORWARD,
        build,
        {"batch": 1, "d_model": 256, "depth": 6, "context": 1024},
        {"batch": 2, "d_model": 4, "depth": 2, "context": 9},
        bar=50.0,
    )
)
