"""Forecasts of the steps after a sequence: squared and absolute errors, in standardised and in original units."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from milkweed._arguments import checked
from milkweed._batches import Batch
from milkweed.tasks.base import STAGES, Task

ERRORS = ("mse", "mae", "mse_original", "mae_original")


class Forecast(Task):
    """Train a model that maps `(inputs, lengths)` to (B, horizon, columns), what the targets are.

    Args:
        units: What a standardised 1 is worth in each column; 1 by default.
        loss: What is minimised: `mse` or `mae`, on standardised numbers.
    """

    metric = "mse"
    larger_is_better = False

    @checked
    def __init__(self, units: list[float] | None = None, loss: str = "mse") -> None:
        super().__init__()
        if loss not in {"mse", "mae"}:
            raise ValueError(f"loss={loss!r} must be 'mse' or 'mae'")
        self.kind = loss
        self.register_buffer("units", torch.tensor(units or [1.0]), persistent=False)
        self.errors = nn.ModuleDict({f"{stage}_{name}": MeanMetric() for stage in STAGES for name in ERRORS})

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean squared or absolute error."""
        targets = batch["targets"]
        if outputs.shape != targets.shape:
            raise ValueError(
                f"a forecast must have the targets' shape {tuple(targets.shape)}; the model gave "
                f"{tuple(outputs.shape)}; use model.class_path=Forecaster"
            )
        return F.mse_loss(outputs, targets) if self.kind == "mse" else F.l1_loss(outputs, targets)

    def score(self, stage: str) -> Metric:
        """The mean squared error of one stage, of standardised numbers."""
        return self.errors[f"{stage}_mse"]

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """The other errors."""
        return {name: self.errors[f"{stage}_{name}"] for name in ERRORS[1:]}

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every window counting the same."""
        errors = outputs.float() - batch["targets"].float()
        original: Any = errors * self.units
        self.losses[f"{stage}_loss"].update(loss, weight=len(errors))
        for name, values in (("", errors), ("_original", original)):
            self.errors[f"{stage}_mse{name}"].update(values.square().mean(), weight=len(errors))
            self.errors[f"{stage}_mae{name}"].update(values.abs().mean(), weight=len(errors))
