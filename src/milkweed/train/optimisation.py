"""How a model is optimised: AdamW's rate and decay, a warm-up, and the schedule after it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from milkweed.nn import parameter_groups
from milkweed.train.schedules import warmup_constant, warmup_cosine, warmup_linear


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a warm-up; in recipes and on the command line its values are options of the task.

    Args:
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `cosine` down to zero at the end of the training, `linear` down to 2%, or
            `constant`.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    ssm_lr: float | None = None
    warmup_steps: int = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("ssm_lr", self.ssm_lr)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"task.{name}={value} must be above 0 and finite")
        for name, value in (("weight_decay", self.weight_decay), ("warmup_steps", self.warmup_steps)):
            if not 0 <= value < math.inf:
                raise ValueError(f"task.{name}={value} must be at least 0 and finite")

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The model's parameters as AdamW takes them."""
        return parameter_groups(model, lr=self.lr, weight_decay=self.weight_decay, ssm_lr=self.ssm_lr)

    def factor(self, total_steps: float) -> Callable[[int], float]:
        """The schedule of a training of so many steps, as a factor on the rates by step."""
        if self.schedule == "constant":
            return warmup_constant(self.warmup_steps)
        if total_steps == math.inf:
            raise ValueError(
                f"task.schedule={self.schedule} needs to know where the training ends; set trainer.max_epochs, or "
                "use task.schedule=constant"
            )
        if self.schedule == "linear":
            return warmup_linear(int(total_steps), self.warmup_steps, final=0.02)
        return warmup_cosine(int(total_steps), self.warmup_steps)
