"""Classification of whole sequences: cross entropy and accuracy."""

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from milkweed._arguments import checked
from milkweed._batches import Batch
from milkweed.tasks.base import STAGES, Task


class Classification(Task):
    """Train a model that maps `(inputs, lengths)` to one row of logits per sequence.

    Args:
        num_classes: Number of classes.
        label_smoothing: Share of the target spread over all classes.
    """

    metric = "accuracy"
    larger_is_better = True

    @checked
    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.accuracies = nn.ModuleDict(
            {f"{stage}_accuracy": MulticlassAccuracy(num_classes, average="micro") for stage in STAGES}
        )
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, with smoothed labels in training only."""
        if outputs.ndim != 2:
            raise ValueError(
                f"classification needs one row of logits per sequence; the model gave {tuple(outputs.shape)}; "
                "set model.pooling=mean or last"
            )
        smoothing = self.label_smoothing if stage == "train" else 0.0
        return F.cross_entropy(outputs, batch["targets"], label_smoothing=smoothing)

    def score(self, stage: str) -> Metric:
        """The accuracy of one stage."""
        return self.accuracies[f"{stage}_accuracy"]

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, and in the test the confusion matrix."""
        targets = batch["targets"]
        self.losses[f"{stage}_loss"].update(loss, weight=len(targets))
        self.score(stage).update(outputs, targets)
        if stage == "test":
            self.confusion.update(outputs, targets)

    def start_epoch(self, stage: str) -> None:
        """Start averages and confusion matrix anew."""
        super().start_epoch(stage)
        if stage == "test":
            self.confusion.reset()
