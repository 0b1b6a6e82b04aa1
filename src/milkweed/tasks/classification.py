"""Classification of whole sequences: cross entropy and accuracy."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from milkweed.tasks.base import STAGES, Batch, SequenceTask


class Classification(SequenceTask):
    """Train a model that maps `(inputs, lengths)` to one row of logits per sequence.

    Args:
        model: `model(inputs (B, L, D), lengths (B,)) -> logits (B, num_classes)`.
        num_classes: Number of classes.
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `cosine` down to zero at the end of the training, or `constant`.
        label_smoothing: Share of the target spread over all classes.

    Raises:
        ValueError: If a value is out of its range.
    """

    metric = "accuracy"
    larger_is_better = True

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        ssm_lr: float | None = None,
        warmup_steps: int = 0,
        schedule: Literal["cosine", "constant"] = "cosine",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, lr, weight_decay, ssm_lr, warmup_steps, schedule)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.accuracies = nn.ModuleDict(
            {f"{stage}_accuracy": MulticlassAccuracy(num_classes, average="micro") for stage in STAGES}
        )
        self.accuracies["train_accuracy"].persistent(True)
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, with smoothed labels in training only.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Logits, (B, num_classes).
            batch: What the data module yields.

        Returns:
            The scalar loss.

        Raises:
            ValueError: If the model gives something else than one row per sequence.
        """
        if outputs.ndim != 2:
            raise ValueError(
                f"classification needs one row of logits per sequence; the model gave {tuple(outputs.shape)}; "
                "set --model.pooling mean or last"
            )
        smoothing = self.label_smoothing if stage == "train" else 0.0
        return F.cross_entropy(outputs, batch["targets"], label_smoothing=smoothing)

    def score(self, stage: str) -> Metric:
        """The accuracy of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric.
        """
        return self.accuracies[f"{stage}_accuracy"]

    def measure(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, and in the test the confusion matrix.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Logits, (B, num_classes).
            batch: What the data module yields.
            loss: The batch's loss.
        """
        targets = batch["targets"]
        self.losses[f"{stage}_loss"].update(loss, weight=len(targets))
        self.score(stage).update(outputs, targets)
        if stage == "test":
            self.confusion.update(outputs, targets)

    def on_test_epoch_start(self) -> None:
        """Start the confusion matrix anew."""
        self.confusion.reset()
