"""Regression of whole sequences or of every step: mean squared error and its root."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, Metric

from milkweed.nn.lengths import valid_steps
from milkweed.tasks.base import STAGES, Batch, SequenceTask


class Regression(SequenceTask):
    """Train a model that maps `(inputs, lengths)` to numbers, per sequence or per step.

    Args:
        model: `model(inputs (B, L, D), lengths (B,))` gives what the targets are: (B, d_output), or (B, L, d_output),
            of which only the valid steps count.
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `cosine` down to zero at the end of the training, or `constant`.

    Raises:
        ValueError: If a value is out of its range.
    """

    metric = "rmse"
    larger_is_better = False

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        ssm_lr: float | None = None,
        warmup_steps: int = 0,
        schedule: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        super().__init__(model, lr, weight_decay, ssm_lr, warmup_steps, schedule)
        self.errors = nn.ModuleDict({f"{stage}_rmse": MeanSquaredError(squared=False) for stage in STAGES})
        self.errors["train_rmse"].persistent(True)

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean squared error.

        Args:
            stage: `train`, `val` or `test`.
            outputs: What the model gave.
            batch: What the data module yields.

        Returns:
            The scalar loss.

        Raises:
            ValueError: If outputs and targets differ in shape.
        """
        targets = batch["targets"]
        if outputs.shape != targets.shape:
            raise ValueError(
                f"regression needs outputs of the targets' shape {tuple(targets.shape)}; the model gave "
                f"{tuple(outputs.shape)}; let it read out per step or per sequence, as the targets are "
                "(--model.readout, --model.pooling)"
            )
        return F.mse_loss(*_valid(outputs, batch))

    def score(self, stage: str) -> Metric:
        """The root mean squared error of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric.
        """
        return self.errors[f"{stage}_rmse"]

    def measure(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every valid number counting the same.

        Args:
            stage: `train`, `val` or `test`.
            outputs: What the model gave.
            batch: What the data module yields.
            loss: The batch's loss.
        """
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
