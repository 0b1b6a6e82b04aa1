"""Training the converted model to give what the dense one gives, on the calibration texts."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from milkweed._suggest import UsageError
from milkweed.convert.hub.conversion_progress import Progress
from milkweed.train.distill import distill_


def distill(
    student: nn.Module, teacher: nn.Module, batches: Sequence[Any], epochs: int, lr: float, device: str, steps: Progress
) -> list[float]:
    """Train a converted model, in place."""
    where = torch.device(device)
    steps.begin("distilling")
    try:
        losses = distill_(
            student,
            teacher,
            list(batches),
            epochs=epochs,
            lr=lr,
            callbacks=[_Told(steps)],
            accelerator=where.type,
            devices=1 if where.index is None else [where.index],
        )
    except FloatingPointError as error:
        raise UsageError(f"--distill: {error}") from error
    student.to(where)  # Lightning leaves it on the CPU
    return losses


class _Told(pl.Callback):
    """Passes the number of steps on."""

    def __init__(self, steps: Progress) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count a step; Lightning's hook."""
        self.steps.count("distilling", trainer.global_step, int(trainer.estimated_stepping_batches))
