"""What a task remembers of the moment at which its structured layers became dense."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Densified:
    """Which layers are dense, and since when."""

    step: int  # optimiser steps that were done before
    warmup_steps: int  # steps over which the learning rate of the dense weights rises anew; 0: not at all
    layers: list[str]  # paths of the layers in the model
    parameters_before: int  # trainable parameters of the whole model until then
    parameters_after: int  # the same from then on

    def as_dict(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values for a checkpoint."""
        return asdict(self)

    def split(self, groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
        """Give the dense weights groups of their own, with ``"densified": True``, if they are warmed up."""
        if not self.warmup_steps:
            return groups
        dense = {id(model.get_submodule(name).get_parameter("weight")) for name in self.layers}
        parts = []
        for group in groups:
            for new in (False, True):
                members = [parameter for parameter in group["params"] if (id(parameter) in dense) == new]
                if members:
                    name = f"{group['name']}, densified" if new else group["name"]
                    parts.append({**group, "params": members, "name": name, "densified": new})
        return parts

    def warmed_up(self, factor: Callable[[int], float]) -> Callable[[int], float]:
        """Lower a schedule, a factor by step, during the warm-up of the dense weights."""
        return lambda step: factor(step) * min(1.0, (step - self.step + 1) / self.warmup_steps)
