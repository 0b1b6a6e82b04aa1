"""What every task shares: the optimiser and its schedule, averages over epochs, and explanations of a bad loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import MeanMetric, Metric

from milkweed._version import __version__
from milkweed.convert import densify_
from milkweed.convert.versions import renamed
from milkweed.models.base import build_model
from milkweed.nn import parameter_groups
from milkweed.tasks.densified import Densified
from milkweed.train.schedules import warmup_constant, warmup_cosine, warmup_linear

Batch = dict[str, torch.Tensor]
STAGES = ("train", "val", "test")


class SequenceTask(LightningModule, ABC):
    """Train `model(inputs (B, L, D) or tokens (B, L), lengths (B,))` by AdamW with a warm-up.

    A task names its `metric` and implements `loss` and `score`.

    Args:
        model: The model.
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `cosine` down to zero at the end of the training, `linear` down to 2%, or
            `constant`.

    Raises:
        ValueError: If a value is out of its range.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """AdamW's."""
    metric: ClassVar[str]
    """What the task is judged by, beside its loss; its value on the validation split decides which epoch was best."""
    larger_is_better: ClassVar[bool]

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float,
        ssm_lr: float | None,
        warmup_steps: int,
        schedule: Literal["cosine", "linear", "constant"],
    ) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("ssm_lr", ssm_lr)):
            if value is not None and not value > 0:
                raise ValueError(f"task.{name}={value} must be above 0")
        for name, value in (("weight_decay", weight_decay), ("warmup_steps", warmup_steps)):
            if value < 0:
                raise ValueError(f"task.{name}={value} must be at least 0")
        self.model = model
        self.densified: Densified | None = None
        self.lr, self.weight_decay, self.ssm_lr = lr, weight_decay, ssm_lr
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in STAGES})
        # A checkpoint in the middle of an epoch carries the averages so far, so that a resumed epoch reports the same.
        self.losses["train_loss"].persistent(True)

    @abstractmethod
    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compare the model's outputs with the targets.

        Args:
            stage: `train`, `val` or `test`.
            outputs: What the model gave.
            batch: What the data module yields.

        Returns:
            The scalar loss.

        Raises:
            ValueError: If the outputs are not of the shape that the task needs.
        """

    @abstractmethod
    def score(self, stage: str) -> Metric:
        """The task's metric, of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric.
        """

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """What is shown beside the metric that the task is judged by.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            torchmetrics metrics by name; none unless a task overrides this.
        """
        return {}

    @abstractmethod
    def measure(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch.

        Args:
            stage: `train`, `val` or `test`.
            outputs: What the model gave, detached.
            batch: What the data module yields.
            loss: The batch's loss, detached.
        """

    def check_inputs(self, stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
        """Refuse what is no sequence of features.

        Args:
            stage: `train`, `val` or `test`.
            batch_idx: Number of the batch.
            inputs: The batch.

        Raises:
            ValueError: If they are not (B, L, D).
        """
        if inputs.ndim != 3 or 0 in inputs.shape:
            raise ValueError(
                f"{stage} batch {batch_idx}: inputs must be (batch, length, features) with none of them 0, "
                f"got {tuple(inputs.shape)}; "
                "check the data module's batch_size and its files"
            )

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Run the model.

        Args:
            inputs: (B, L, D), or tokens (B, L).
            lengths: Valid steps of every sequence, (B,); all L if None.

        Returns:
            The model's outputs.
        """
        return self.model(inputs, lengths)

    def run_model(self, batch: Batch) -> torch.Tensor:
        """Run the model on a batch; a task whose model reads more than inputs and lengths overrides this.

        Args:
            batch: What the data module yields.

        Returns:
            The model's outputs.
        """
        return self(batch["inputs"], batch["lengths"])

    def trainable_parameters(self) -> int:
        """Count what is trained.

        Returns:
            Numbers in all parameters of the model that are not frozen.
        """
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def densify(self, step: int, warmup_steps: int = 0) -> None:
        """Make all structured linear layers dense; the optimiser has to be made anew.

        Args:
            step: Optimiser steps done so far.
            warmup_steps: Steps over which the learning rate of the dense weights rises anew.
        """
        before, layers = self.trainable_parameters(), densify_(self.model)
        self.densified = Densified(step, warmup_steps, layers, before, self.trainable_parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down the version, and whether the model has been made dense.

        Args:
            checkpoint: What Lightning collected.
        """
        checkpoint["milkweed"] = __version__
        if self.densified:
            checkpoint["densified"] = self.densified.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the model the layers that the checkpoint has, dense or structured, before its numbers are loaded.

        Args:
            checkpoint: What `on_save_checkpoint` has seen; its parameters get the names of this version.
        """
        version = checkpoint.get("milkweed", "0.1.0")  # which did not write it down
        checkpoint["state_dict"] = renamed(checkpoint["state_dict"], self, version)
        stored = checkpoint.get("densified")
        if stored and not self.densified:
            densify_(self.model)
        elif self.densified and not stored:
            self.model = build_model(self.model.config).to(self.device)
        self.densified = Densified(**stored) if stored else None

    def on_train_start(self) -> None:
        """Let rates and decay be those of the options: a restored optimiser would go on with the checkpoint's."""
        self.set_rates()

    def set_rates(self) -> None:
        """Set decay and learning rates to those of the options at the schedule's present step."""
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
        self.score("train").reset()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one batch.

        Args:
            batch: What the data module yields.
            batch_idx: Number of the batch in its epoch.

        Returns:
            The scalar loss.
        """
        return self._step("train", batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Validation metrics of one batch.

        Args:
            batch: What the data module yields.
            batch_idx: Number of the batch.
        """
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Test metrics of one batch.

        Args:
            batch: What the data module yields.
            batch_idx: Number of the batch.
        """
        self._step("test", batch, batch_idx)

    def configure_optimizers(self) -> dict:
        """AdamW over the library's parameter groups, with the schedule stepped after every optimiser step.

        Returns:
            What Lightning expects.
        """
        groups = self._groups()
        optimizer = torch.optim.AdamW(groups, betas=self.betas)
        factor = self._factor()
        factors = [self.densified.warmed_up(factor) if group.get("densified") else factor for group in groups]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[dict]:
        groups = parameter_groups(self.model, lr=self.lr, weight_decay=self.weight_decay, ssm_lr=self.ssm_lr)
        return self.densified.split(groups, self.model) if self.densified else groups

    def _factor(self) -> Callable[[int], float]:
        if self.schedule == "constant":
            return warmup_constant(self.warmup_steps)
        if self.schedule == "linear":
            return warmup_linear(self._total_steps(), self.warmup_steps, final=0.02)
        return warmup_cosine(self._total_steps(), self.warmup_steps)

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                f"task.schedule={self.schedule} needs to know where the training ends; set --trainer.max_epochs, or "
                "use --task.schedule constant"
            )
        return int(total)

    def _step(self, stage: str, batch: Batch, batch_idx: int) -> torch.Tensor:
        inputs = batch["inputs"]
        self.check_inputs(stage, batch_idx, inputs)
        outputs = self.run_model(batch)
        loss = self.loss(stage, outputs, batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._explain_loss(stage, batch_idx, batch, loss))
        self.measure(stage, outputs.detach(), batch, loss.detach())
        metrics = {f"{stage}_loss": self.losses[f"{stage}_loss"], f"{stage}_{self.metric}": self.score(stage)}
        metrics |= {f"{stage}_{name}": value for name, value in self.further_scores(stage).items()}
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=stage != "test")
        return loss

    def _explain_loss(self, stage: str, batch_idx: int, batch: Batch, loss: torch.Tensor) -> str:
        where = f"{stage} batch {batch_idx}, epoch {self.current_epoch}, step {self.global_step}"
        for what in ("inputs", "targets"):
            bad = (~torch.isfinite(batch[what])).reshape(len(batch[what]), -1).any(1).nonzero().flatten().tolist()
            if bad:
                return (
                    f"{where}: the {what} hold NaN or infinity, first in sample {bad[0]} of the batch; clean the data"
                )
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
