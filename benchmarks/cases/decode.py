"""One more token: a step of the recurrence against the whole context once more."""

from __future__ import annotations

import torch

from benchmarks.case import Case, Figure, Outputs, Size, Work, compare, draw, register
from milkweed.models import SequenceModel

_TOLERANCE = 1e-4


def build(size: Size) -> Work:
    """A stack of S4D layers that has read a context, and its next input; a call gives the output after that."""
    batch, d_model, depth = size["batch"], size["d_model"], size["depth"]
    model = SequenceModel(1, 16, d_model, depth, {"name": "s4d"}, pooling="none").eval()
    u = draw(batch, size["context"], 1)
    stepper = model.stepper()
    _, state = stepper.read(u[:, :-1], stepper.initial_state(batch))
    exact, exact_u = SequenceModel(**model.options).double().eval(), u.double()
    exact.load_state_dict(model.state_dict())

    def ours() -> Outputs:
        return {"output": stepper(u[:, -1], state)[0]}

    @torch.no_grad()
    def peer() -> Outputs:
        return {"output": model(u)[:, -1]}

    @torch.no_grad()
    def truth() -> Outputs:
        return {"output": exact(exact_u)[:, -1]}

    # The map from D to 2 D channels after each recurrence is most of the work, and parameters of what has to be read.
    return compare(
        ours,
        peer,
        truth,
        _TOLERANCE,
        flops=2 * batch * depth * 2 * d_model**2,
        bytes=sum(parameter.nbytes for parameter in model.parameters()),
    )


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
