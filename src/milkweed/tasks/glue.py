"""Fine-tuning on sentences and pairs of sentences: classes or a number, with the metrics of GLUE."""

import warnings
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import Metric, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from milkweed._arguments import checked
from milkweed._batches import Batch
from milkweed._suggest import unknown
from milkweed.tasks.base import STAGES
from milkweed.tasks.classification import class_predictions
from milkweed.tasks.correlations import Matthews, Pearson
from milkweed.tasks.tokens import TokenTask


class Glue(TokenTask):
    """Train a model that gives one row per sentence or pair: logits of classes, or with one output a number.

    Classes are learned by cross entropy, numbers by mean squared error. Numbers are measured by Pearson's and
    Spearman's correlation, classes by accuracy and Matthews' correlation, and two classes by F1 of the second one too.
    Correlations with a constant are 0, and so is F1 where there is none of the second class.

    Args:
        num_classes: Number of classes; 1 for a number.
        judged_by: The metric that decides which epoch was best; accuracy or Pearson's correlation if None.
        pretrained: Where the encoder starts, and the head if it is of the same kind: a run, a folder or file written by
            `save_pretrained`, or one as M2-BERT's authors publish it. None to start afresh.
    """

    larger_is_better = True
    optimisation: ClassVar = {"lr": 5e-5, "schedule": "linear"}

    @checked(but=("pretrained",))
    def __init__(
        self,
        num_classes: int,
        judged_by: str | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(pretrained)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        self.num_classes = num_classes
        self.scores = nn.ModuleDict({f"{stage}_{name}": m for stage in STAGES for name, m in self._metrics().items()})
        names = list(self._metrics())
        if judged_by not in {None, *names}:
            raise ValueError(unknown("judged_by", judged_by, names))
        self.metric = judged_by or names[0]

    def _metrics(self) -> dict[str, Metric]:
        if self.num_classes == 1:
            with warnings.catch_warnings():
                # That it keeps all numbers is right: ranks are those among all of them.
                warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef` will save all targets")
                return {"pearson": Pearson(), "spearman": SpearmanCorrCoef()}
        metrics: dict[str, Metric] = {"accuracy": MulticlassAccuracy(self.num_classes, average="micro")}
        if self.num_classes == 2:
            metrics["f1"] = BinaryF1Score()
        return metrics | {"matthews": Matthews(self.num_classes)}

    def run_model(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Run the model."""
        return model(batch["inputs"], batch["lengths"], batch["token_types"])

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, or mean squared error."""
        targets = batch["targets"]
        if outputs.shape != (len(targets), self.num_classes):
            raise ValueError(
                f"the model must give one row per text, {(len(targets), self.num_classes)}; it gave "
                f"{tuple(outputs.shape)}; set model.head=classification"
            )
        if self.num_classes == 1:
            return F.mse_loss(outputs[:, 0], targets)
        return F.cross_entropy(outputs, targets)

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Classes and their probabilities, or numbers."""
        return {"values": outputs} if self.num_classes == 1 else class_predictions(outputs)

    def score(self, stage: str) -> Metric:
        """The metric that decides."""
        return self.scores[f"{stage}_{self.metric}"]

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """The other metrics."""
        return {name: self.scores[f"{stage}_{name}"] for name in self._names() if name != self.metric}

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch."""
        targets = batch["targets"]
        self.losses[f"{stage}_loss"].update(loss, weight=len(targets))
        # Correlations of bfloat16 numbers would be of their roundings.
        found = outputs[:, 0].float() if self.num_classes == 1 else outputs.argmax(-1)
        for metric in (self.score(stage), *self.further_scores(stage).values()):
            metric.update(found, targets)

    def _names(self) -> list[str]:
        return [name.removeprefix("train_") for name in self.scores if name.startswith("train_")]
