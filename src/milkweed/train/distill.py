"""Fine-tuning a converted model against the dense one it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from milkweed.tasks.distillation import distance
from milkweed.train.module import OptimisedModule
from milkweed.train.optimisation import Optimisation
from milkweed.train.quiet_lightning import quietly


def distill_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Any],
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    seed: int = 0,
    callbacks: Sequence[pl.Callback] = (),
    **trainer_options: Any,
) -> list[float]:
    """Train a converted model, in place, to give the hidden states and outputs of the dense one.

    Args:
        student: The converted model.
        teacher: The dense one.
        batches: Unlabelled inputs that both can be called with, each an optimiser step; shuffled for every epoch.
        epochs: How often all batches are run through.
        lr: Learning rate after the warm-up, which takes a tenth of all steps; in short trainings ten steps, but never
            more than half.
        seed: Of the order of the batches.
        callbacks: Lightning callbacks, e.g. a progress bar.
        **trainer_options: Further arguments of Lightning's Trainer, e.g. ``precision="bf16-mixed"``.

    Returns:
        The loss of every step.

    Raises:
        TypeError: The batches are not a list, or an option of the Trainer is one that is set here.
        ValueError: There is no batch, an argument is out of range, the student is in half precision, or the models give
            outputs of different shapes.
        FloatingPointError: The loss is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; the student is trained as far as it got.
        SystemExit: A callback or a signal asked for it.
    """
    _check(student, batches, epochs)
    fixed: dict[str, Any] = {
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(each, pl.callbacks.ProgressBar) for each in callbacks),
    }
    if taken := sorted(fixed.keys() & trainer_options):
        raise TypeError(f"distill_ sets {taken[0]} itself" + ("; use epochs" if taken == ["max_epochs"] else ""))
    losses = _Losses()
    task = Distillation(student, teacher, lr, warmup_steps=warmup_of(len(batches) * epochs))
    loader = DataLoader(list(batches), batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(seed))
    options = fixed | {"callbacks": [losses, *callbacks], "gradient_clip_val": 1.0} | trainer_options
    modes = [(module, module.training) for module in student.modules()]
    student.train()  # or Lightning warns of modules in evaluation mode; the task itself takes dropout out
    try:
        with quietly():
            pl.Trainer(**options).fit(task, loader)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            raise KeyboardInterrupt from None
        raise
    finally:
        for module, training in modes:
            module.training = training
    return losses.values


class Distillation(OptimisedModule):
    """Train a student to give a teacher's outputs, on inputs without labels.

    Both models run in evaluation mode: dropout would only blur what is to be matched.

    Args:
        student: The converted model.
        teacher: The dense one; not trained, and not part of what is saved.
        lr: Learning rate of AdamW after the warm-up.
        warmup_steps: Optimiser steps of linear warm-up; then a cosine falls to zero.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, lr: float = 1e-3, warmup_steps: int = 20) -> None:
        super().__init__(student, Optimisation(lr, weight_decay=0.0, warmup_steps=warmup_steps))
        if student is teacher:
            raise ValueError("student and teacher are one model; copy the dense one before converting it")
        self._teacher = [teacher]  # in a list: no submodule, so never saved or trained

    def on_train_start(self) -> None:
        """Take dropout out and bring the teacher to the student."""
        super().on_train_start()
        self.model.eval()
        self._teacher[0].to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Compare the two models on one batch."""
        loss = distance(self.model, self._teacher[0], batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"batch {batch_idx}: the distillation loss is {loss.item()}; lower lr (now {self.optimisation.lr}), or "
                "look for NaN in the batches"
            )
        self.log("distillation_loss", loss, prog_bar=True)
        return loss


def warmup_of(steps: int) -> int:
    """Decide how many of a distillation's steps are warm-up.

    AdamW's first steps are as long as the rate whatever the gradient: without a warm-up, a converted model loses in
    them what its projection had kept.
    """
    return min(max(steps // 10, 10), steps // 2)


def _check(student: nn.Module, batches: Sequence[Any], epochs: int) -> None:
    if isinstance(batches, str | bytes | Mapping) or not isinstance(batches, Sequence):
        raise TypeError(f"batches must be a list of inputs for the model; got a {type(batches).__name__}")
    if not batches:
        raise ValueError("distillation needs batches; got none")
    if type(epochs) is not int or epochs < 1:
        raise ValueError(f"epochs={epochs!r} must be a whole number, at least 1")
    if half := {p.dtype for p in student.parameters() if p.dtype in {torch.float16, torch.bfloat16}}:
        raise ValueError(
            f"student is in {min(map(str, half))}, which would lose small steps in its rounding; use student.float(), "
            'and precision="bf16-mixed" to compute in it'
        )
    if not any(p.requires_grad for p in student.parameters()):
        raise ValueError("student has no parameter that is trained; use student.requires_grad_(True)")


class _Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note a loss."""
        self.values.append(float(outputs["loss"]))
