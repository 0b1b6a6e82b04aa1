"""The LightningModule of every training: a model, what it is trained to do, and how it is optimised."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from milkweed._batches import Batch
from milkweed._version import __version__
from milkweed.convert import densify_
from milkweed.convert.versions import renamed
from milkweed.models.base import build_model
from milkweed.tasks.base import Task
from milkweed.tasks.classification import Classification
from milkweed.train.densified import Densified
from milkweed.train.optimisation import Optimisation


class OptimisedModule(LightningModule):
    """A model under AdamW, which may become dense on the way."""

    def __init__(self, model: nn.Module, optimisation: Optimisation, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__()
        self.model, self.optimisation, self.betas = model, optimisation, betas
        self.densified: Densified | None = None

    def trainable_parameters(self) -> int:
        """Numbers in all parameters of the model that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def densify(self, step: int, warmup_steps: int = 0) -> None:
        """Make all structured linear layers dense; the optimiser has to be made anew."""
        before, layers = self.trainable_parameters(), densify_(self.model)
        self.densified = Densified(step, warmup_steps, layers, before, self.trainable_parameters())

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

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the library's parameter groups, with the schedule stepped after every optimiser step."""
        groups = self._groups()
        optimizer = torch.optim.AdamW(groups, betas=self.betas)
        factor = self.optimisation.factor(self._total_steps())
        factors = [self.densified.warmed_up(factor) if group.get("densified") else factor for group in groups]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        groups = self.optimisation.groups(self.model)
        return self.densified.split(groups, self.model) if self.densified else groups

    def _total_steps(self) -> float:
        # Not asked for in vain: it builds the loaders.
        return float("inf") if self.optimisation.schedule == "constant" else self.trainer.estimated_stepping_batches


class SequenceModule(OptimisedModule):
    """Train `model(inputs (B, L, D) or tokens (B, L), lengths (B,))` for a task.

    Args:
        model: The model.
        task: Its loss and its metrics.
        optimisation: Its rates and their schedule; the task's usual ones if None.
    """

    def __init__(self, model: nn.Module, task: Task, optimisation: Optimisation | None = None) -> None:
        task.check_model(model)
        super().__init__(model, optimisation or Optimisation(**task.optimisation), task.betas)
        self.task = task
        self._resumed = False
        # A checkpoint in the middle of an epoch carries the averages so far, so that a resumed epoch reports the same.
        for metric in task.averages("train").values():
            metric.persistent(True)

    @property
    def metric(self) -> str:
        """What the model is judged by."""
        return self.task.metric

    @property
    def larger_is_better(self) -> bool:
        """Whether its largest value is the best, or its smallest."""
        return self.task.larger_is_better

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Run the model."""
        return self.model(inputs, lengths)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down the version, and whether the model has been made dense."""
        checkpoint["milkweed"] = __version__
        if self.densified:
            checkpoint["densified"] = self.densified.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the model the layers that the checkpoint has, and the checkpoint the names of this version."""
        version = checkpoint.get("milkweed", "0.1.0")  # which did not write it down
        state = {
            # Metrics were the module's own in 0.1.0.
            name if name.startswith(("model.", "task.")) else f"task.{name}": tensor
            for name, tensor in checkpoint["state_dict"].items()
        }
        checkpoint["state_dict"] = renamed(state, self, version)
        stored = checkpoint.get("densified")
        if stored and not self.densified:
            densify_(self.model)
        elif self.densified and not stored:
            self.model = build_model(self.model.config).to(self.device)
        self.densified = Densified(**stored) if stored else None
        self._resumed = True

    def on_fit_start(self) -> None:
        """Let the task give the model its start, unless a checkpoint has just done so."""
        if not self._resumed:
            self.task.prepare(self.model)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(self.task, Classification) and self.task.balanced and data is not None:
            self.task.count(targets_of(data.split("train")))

    def on_train_epoch_start(self) -> None:
        """Start the training averages anew; Lightning skips this when it resumes in the middle of an epoch."""
        self.task.start_epoch("train")

    def on_test_epoch_start(self) -> None:
        """Start anew what the test alone measures."""
        self.task.start_epoch("test")

    def on_validation_epoch_end(self) -> None:
        """Log what the task computes over a whole split."""
        self.log_dict(self.task.figures("val", self.trainer.val_dataloaders))

    def on_test_epoch_end(self) -> None:
        """Log what the task computes over a whole split."""
        self.log_dict(self.task.figures("test", self.trainer.test_dataloaders))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one batch."""
        return self._step("train", batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Validation metrics of one batch."""
        self._step("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Test metrics of one batch."""
        self._step("test", batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """What the model says of one batch, whose targets, if it has some, are not looked at."""
        self.task.check_inputs("predict", batch_idx, batch["inputs"])
        return self.task.predictions(self.task.run_model(self.model, batch), batch)

    def _step(self, stage: str, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.task.check_inputs(stage, batch_idx, batch["inputs"])
        outputs = self.task.run_model(self.model, batch)
        loss = self.task.loss(stage, outputs, batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._explain_loss(stage, batch_idx, batch, loss))
        self.task.update_averages(stage, outputs.detach(), batch, loss.detach())
        self.log_dict(self.task.averages(stage), on_step=False, on_epoch=True, prog_bar=stage != "test")
        return loss

    def _explain_loss(self, stage: str, batch_idx: int, batch: Mapping[str, torch.Tensor], loss: torch.Tensor) -> str:
        where = f"{stage} batch {batch_idx}, epoch {self.current_epoch}, step {self.global_step}"
        lr = self.optimisation.lr
        for what in ("inputs", "targets"):
            bad = (~torch.isfinite(batch[what])).reshape(len(batch[what]), -1).any(1).nonzero().flatten().tolist()
            if bad:
                return (
                    f"{where}: the {what} hold NaN or infinity, first in sample {bad[0]} of the batch; clean the data"
                )
        broken = [name for name, value in self.model.named_parameters() if not torch.isfinite(value).all()]
        if broken:
            return (
                f"{where}: the loss is {loss.item()} because parameters diverged, first {broken[0]}; lower task.lr "
                f"(now {lr}), warm up longer, or clip with trainer.gradient_clip_val=1.0"
            )
        return (
            f"{where}: the loss is {loss.item()} though inputs and parameters are finite; "
            f"lower task.lr (now {lr}) or train with trainer.precision=32"
        )


def targets_of(split: Any) -> torch.Tensor:
    """All targets of a split; one that does not hold them is read through."""
    if isinstance(getattr(split, "targets", None), torch.Tensor):
        return split.targets
    return torch.cat([split[[place]]["targets"] for place in range(len(split))])
