"""Regression of whole sequences or of every step: mean squared error and its root."""

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, Metric

from milkweed._batches import Batch
from milkweed.nn.lengths import valid_steps
from milkweed.tasks.base import STAGES, Task


class Regression(Task):
    """Train a model that maps `(inputs, lengths)` to numbers, per sequence or per step.

    They are what the targets are: (B, d_output), or (B, L, d_output), of which only the valid steps count.
    """

    metric = "rmse"
    larger_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.errors = nn.ModuleDict({f"{stage}_rmse": MeanSquaredError(squared=False) for stage in STAGES})

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean squared error."""
        targets = batch["targets"]
        if outputs.shape != targets.shape:
            raise ValueError(
                f"regression needs outputs of the targets' shape {tuple(targets.shape)}; the model gave "
                f"{tuple(outputs.shape)}; let it read out per step or per sequence, as the targets are "
                "(model.readout, model.pooling)"
            )
        return F.mse_loss(*_valid(outputs, batch))

    def score(self, stage: str) -> Metric:
        """The root mean squared error of one stage."""
        return self.errors[f"{stage}_rmse"]

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every valid number counting the same."""
        outputs, targets = _valid(outputs, batch)
        self.losses[f"{stage}_loss"].update(loss, weight=targets.numel())
        self.score(stage).update(outputs.flatten(), targets.flatten())


def _valid(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets without the padding."""
    targets = batch["targets"]
    if targets.ndim < 3:
        return outputs, targets
    valid = valid_steps(batch["lengths"], targets.shape[1])
    return outputs[valid], targets[valid]
