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
        class_weights: What a sample of each class counts in the training's loss, a number per class; or `balanced`,
            inversely to how often the class is in the training split.
        calibrate: Whether a temperature is fitted on the validation split when the training has ended, by which
            predictions divide their logits, so that probabilities are as often right as they say.

    Source:
        Guo et al. (arXiv 1706.04599) for the temperature. Weights as `balanced` of scikit-learn.
    """

    metric = "accuracy"
    larger_is_better = True

    @checked
    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: str | list[float] | None = None,
        calibrate: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.label_smoothing, self.calibrate = label_smoothing, calibrate
        self.balanced = class_weights == "balanced"
        weights = None if self.balanced or class_weights is None else _weights(class_weights, num_classes)
        # Of the options and the data, not of what was learned.
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.accuracies = nn.ModuleDict(
            {f"{stage}_accuracy": MulticlassAccuracy(num_classes, average="micro") for stage in STAGES}
        )
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, with smoothed labels and weights in training only."""
        if outputs.ndim != 2:
            raise ValueError(
                f"classification needs one row of logits per sequence; the model gave {tuple(outputs.shape)}; "
                "set model.pooling=mean or last"
            )
        smoothing = self.label_smoothing if stage == "train" else 0.0
        weights = self.class_weights if stage == "train" else None
        if stage == "train" and self.balanced and weights is None:
            raise ValueError(
                "task.class_weights=balanced counts the classes of the training split when the training starts; give "
                "Trainer.fit a data module, or numbers as task.class_weights"
            )
        weights = None if weights is None else weights.to(outputs.dtype)
        return F.cross_entropy(outputs, batch["targets"], weights, label_smoothing=smoothing)

    def count(self, targets: torch.Tensor) -> None:
        """Weigh the classes by the targets of the training split, if that is asked for."""
        if not self.balanced:
            return
        counts = torch.bincount(targets.flatten().cpu(), minlength=self.confusion.num_classes)
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"task.class_weights=balanced needs every class in the training split; class number {missing[0]} is "
                "not there; use more data, or give numbers"
            )
        weights = len(targets) / (len(counts) * counts.double())
        self.class_weights = weights.float().to(self.temperature.device)

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Classes and their probabilities."""
        return class_predictions(outputs, self.temperature)

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


def class_predictions(logits: torch.Tensor, temperature: torch.Tensor | float = 1.0) -> dict[str, torch.Tensor]:
    """The likeliest class of every row of logits (B, K), and the probabilities of all."""
    probabilities = (logits.float() / temperature).softmax(-1)
    return {"classes": probabilities.argmax(-1), "probabilities": probabilities}


def _weights(given: str | list[float], classes: int) -> torch.Tensor:
    if isinstance(given, str):
        raise ValueError(f"task.class_weights={given!r} must be 'balanced', or {classes} numbers")
    weights = torch.tensor(given, dtype=torch.float32)
    if weights.shape != (classes,) or not bool((weights.isfinite() & (weights > 0)).all()):
        raise ValueError(
            f"task.class_weights={given} must be {classes} finite numbers above 0, one for each class, or 'balanced'"
        )
    return weights
