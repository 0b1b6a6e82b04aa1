"""Fine-tuning a converted model against the dense one it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from milkweed.tasks.distillation import Distillation
from milkweed.train.noise import quietly


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
        lr: Learning rate after the warm-up, of the first twentieth of all steps.
        seed: Of the order of the batches.
        callbacks: Lightning callbacks, e.g. a progress bar.
        **trainer_options: Further arguments of Lightning's Trainer, e.g. ``precision="bf16-mixed"``.

    Returns:
        The loss of every step.

    Raises:
        ValueError: There is no batch, or an argument is out of range.
        FloatingPointError: The loss is not finite.
    """
    if not batches:
        raise ValueError("distillation needs batches; got none")
    if epochs < 1:
        raise ValueError(f"epochs={epochs} must be at least 1")
    modes = [(module, module.training) for module in student.modules()]
    student.train()  # or Lightning warns of modules in evaluation mode; the task itself takes dropout out
    losses = _Losses()
    task = Distillation(student, teacher, lr, warmup_steps=len(batches) * epochs // 20)
    loader = DataLoader(list(batches), batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(seed))
    with quietly():
        trainer = pl.Trainer(
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(each, pl.callbacks.ProgressBar) for each in callbacks),
            callbacks=[losses, *callbacks],
            **{"gradient_clip_val": 1.0, **trainer_options},
        )
        trainer.fit(task, loader)
    for module, training in modes:
        module.training = training
    return losses.values


class _Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note a loss; Lightning's hook.

        Args:
            trainer: Not used.
            task: Not used.
            outputs: What the training step gave.
            batch: Not used.
            batch_idx: Not used.
        """
        self.values.append(float(outputs["loss"]))
