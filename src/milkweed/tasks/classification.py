"""Classification of whole sequences: cross entropy, accuracy, AdamW with warm-up and cosine."""

from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from milkweed.nn import parameter_groups
from milkweed.train.schedules import warmup_constant, warmup_cosine

Batch = dict[str, torch.Tensor]


class Classification(LightningModule):
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

    monitor = "val_accuracy"
    """The metric that decides which epoch was best; larger is better."""

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
        super().__init__()
        for name, value in (("lr", lr), ("ssm_lr", ssm_lr)):
            if value is not None and not value > 0:
                raise ValueError(f"task.{name}={value} must be above 0")
        for name, value in (("weight_decay", weight_decay), ("warmup_steps", warmup_steps)):
            if value < 0:
                raise ValueError(f"task.{name}={value} must be at least 0")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.model = model
        self.lr, self.weight_decay, self.ssm_lr = lr, weight_decay, ssm_lr
        self.warmup_steps, self.schedule, self.label_smoothing = warmup_steps, schedule, label_smoothing
        stages = ("train", "val", "test")
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in stages})
        self.accuracies = nn.ModuleDict(
            {f"{stage}_accuracy": MulticlassAccuracy(num_classes, average="micro") for stage in stages}
        )
        self.confusion = MulticlassConfusionMatrix(num_classes)
        # A checkpoint in the middle of an epoch carries the averages so far, so that a resumed epoch reports the same.
        self.losses["train_loss"].persistent(True)
        self.accuracies["train_accuracy"].persistent(True)

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Classify sequences.

        Args:
            inputs: (B, L, D).
            lengths: Valid steps of every sequence, (B,); all L if None.

        Returns:
            Logits, (B, num_classes).
        """
        return self.model(inputs, lengths)

    def on_train_start(self) -> None:
        """Let rates and decay be those of the options: a restored optimiser would go on with the checkpoint's."""
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        for group, wanted in zip(optimizer.param_groups, self._groups(), strict=True):
            group["weight_decay"], group["initial_lr"] = wanted["weight_decay"], wanted["lr"]
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        rates = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(scheduler.last_epoch)

    def on_train_epoch_start(self) -> None:
        """Start the training averages anew; Lightning skips this when it resumes in the middle of an epoch."""
        self.losses["train_loss"].reset()
        self.accuracies["train_accuracy"].reset()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one batch.

        Args:
            batch: What the data module yields.
            batch_idx: Number of the batch in its epoch.

        Returns:
            The scalar loss.
        """
        return self._step("train", batch, batch_idx, self.label_smoothing)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Validation metrics of one batch.

        Args:
            batch: What the data module yields.
            batch_idx: Number of the batch.
        """
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Test metrics and confusion matrix of one batch.

        Args:
            batch: What the data module yields.
            batch_idx: Number of the batch.
        """
        _, logits = self._step("test", batch, batch_idx)
        self.confusion.update(logits, batch["targets"])

    def on_test_epoch_start(self) -> None:
        """Start the confusion matrix anew."""
        self.confusion.reset()

    def configure_optimizers(self) -> dict:
        """AdamW over the library's parameter groups, with the schedule stepped after every optimiser step.

        Returns:
            What Lightning expects.
        """
        optimizer = torch.optim.AdamW(self._groups())
        if self.schedule == "cosine":
            factor = warmup_cosine(self._total_steps(), self.warmup_steps)
        else:
            factor = warmup_constant(self.warmup_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[dict]:
        return parameter_groups(self.model, lr=self.lr, weight_decay=self.weight_decay, ssm_lr=self.ssm_lr)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "task.schedule=cosine needs to know where the training ends; set --trainer.max_epochs, or "
                "use --task.schedule constant"
            )
        return int(total)

    def _step(
        self, stage: str, batch: Batch, batch_idx: int, label_smoothing: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = batch["inputs"], batch["targets"]
        self._check_shape(stage, batch_idx, inputs)
        logits = self(inputs, batch["lengths"])
        if logits.ndim != 2:
            raise ValueError(
                f"classification needs one row of logits per sequence; the model gave {tuple(logits.shape)}; "
                "set --model.pooling mean or last"
            )
        loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._explain_loss(stage, batch_idx, inputs, loss))
        average, accuracy = self.losses[f"{stage}_loss"], self.accuracies[f"{stage}_accuracy"]
        average.update(loss.detach(), weight=len(targets))
        accuracy.update(logits.detach(), targets)
        metrics = {f"{stage}_loss": average, f"{stage}_accuracy": accuracy}
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=stage != "test")
        return loss, logits

    def _check_shape(self, stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
        if inputs.ndim != 3 or 0 in inputs.shape:
            raise ValueError(
                f"{stage} batch {batch_idx}: inputs must be (batch, length, features) with none of them 0, "
                f"got {tuple(inputs.shape)}; "
                "check the data module's batch_size and its files"
            )

    def _explain_loss(self, stage: str, batch_idx: int, inputs: torch.Tensor, loss: torch.Tensor) -> str:
        where = f"{stage} batch {batch_idx}, epoch {self.current_epoch}, step {self.global_step}"
        bad = (~torch.isfinite(inputs)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            return f"{where}: the inputs hold NaN or infinity, first in sample {bad[0]} of the batch; clean the data"
        broken = [name for name, value in self.model.named_parameters() if not torch.isfinite(value).all()]
        if broken:
            return (
                f"{where}: the loss is {loss.item()} because parameters diverged, first {broken[0]}; lower --task.lr "
                f"(now {self.lr}), warm up longer, or clip with --trainer.gradient_clip_val 1.0"
            )
        return (
            f"{where}: the loss is {loss.item()} though inputs and parameters are finite; "
            f"lower --task.lr (now {self.lr}) or train in --trainer.precision 32"
        )
