"""What a task remembers of the moment at which its structured layers became dense."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Densified:
    """Since when which layers are dense.

    Attributes:
        step: Optimiser steps that were done before.
        warmup_steps: Steps over which the learning rate of the dense weights rises anew; 0: not at all.
        layers: Paths of the layers in the model.
        parameters_before: Trainable parameters of the whole model until then.
        parameters_after: The same from then on.
    """

    step: int
    warmup_steps: int
    layers: list[str]
    parameters_before: int
    parameters_after: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint.

        Returns:
            The constructor's arguments.
        """
        return asdict(self)

    def split(self, groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
        """Give the dense weights optimiser groups of their own, if they are warmed up.

        Args:
            groups: From `milkweed.nn.parameter_groups`.
            model: The model.

        Returns:
            Groups, those of the dense weights with ``"densified": True``.
        """
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
        """Lower a schedule during the warm-up of the dense weights.

        Args:
            factor: The schedule of all others.

        Returns:
            From the step to the factor on the learning rate.
        """
        return lambda step: factor(step) * min(1.0, (step - self.step + 1) / self.warmup_steps)
