"""Recovering what a conversion lost: the converted model learns to give the dense one's hidden states and outputs."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from milkweed.convert.calibrate import attention_mask, evaluating, run_batch
from milkweed.nn import parameter_groups
from milkweed.train.schedules import warmup_cosine

_HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")


class Distillation(LightningModule):
    """Train a student to give a frozen teacher's outputs, on inputs without labels.

    The loss is the mean, over the outputs and all hidden states that both models give, of the squared error relative to
    the teacher's variance, so that no layer outweighs another. Both models run in evaluation mode: dropout would only
    blur what is to be matched.

    Args:
        student: The converted model.
        teacher: The dense one; not trained, and not part of what is saved.
        lr: Learning rate of AdamW after the warm-up.
        warmup_steps: Optimiser steps of linear warm-up; then a cosine falls to zero.

    Raises:
        ValueError: A rate or a number of steps is out of range, or the two models are one.

    Source:
        Hidden states as targets: TinyBERT (arXiv 1909.10351), section 3, here relative to each layer's variance and
        without attention maps, as both models have the same layers.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, lr: float = 1e-3, warmup_steps: int = 20) -> None:
        super().__init__()
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr} must be above 0 and finite")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} must be at least 0")
        if student is teacher:
            raise ValueError("student and teacher are one model; copy the dense one before converting it")
        self.student = student
        self._teacher = [teacher]  # in a list: no submodule, so never saved or trained
        self.lr, self.warmup_steps = lr, warmup_steps

    def on_train_start(self) -> None:
        """Take dropout out and bring the teacher to the student."""
        self.student.eval()
        self._teacher[0].to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compare the two models on one batch.

        Args:
            batch: What the models are called with: keyword arguments, a tuple or a tensor.
            batch_idx: Its number, for messages.

        Returns:
            The scalar loss.

        Raises:
            ValueError: The models give outputs of different shapes, or none.
            FloatingPointError: The loss is not finite.
        """
        with evaluating(self._teacher[0]):
            targets = _states(self._teacher[0], batch)
        found, mask = _states(self.student, batch), attention_mask(batch)
        shapes, expected = ([tuple(each.shape) for each in states] for states in (found, targets))
        if shapes != expected or not shapes:
            raise ValueError(
                "student and teacher must give floating-point tensors of the same shapes; got "
                f"{shapes or 'none'} from the student and {expected or 'none'} from the teacher"
            )
        pairs = zip(found, targets, strict=True)
        loss = torch.stack([relative_error(*pair, mask) for pair in pairs]).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"batch {batch_idx}: the distillation loss is {loss.item()}; lower lr (now {self.lr}), or look for NaN "
                "in the batches"
            )
        self.log("distillation_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """AdamW over the library's parameter groups, with warm-up and cosine.

        Returns:
            What Lightning expects.
        """
        optimizer = torch.optim.AdamW(parameter_groups(self.student, lr=self.lr))
        factor = warmup_cosine(int(self.trainer.estimated_stepping_batches), self.warmup_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def relative_error(found: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over the variance of the target.

    Args:
        found: (..., n).
        target: The same shape.
        mask: (B, L), which positions count; ignored by tensors of other leading shapes.

    Returns:
        A scalar; 1 for a constant guess at the mean.
    """
    found, target = found.float(), target.float()
    if mask is not None and target.shape[: mask.ndim] == mask.shape:
        found, target = found[mask], target[mask]
    variance = (target - target.mean(0)).square().mean()
    return (found - target).square().mean() / variance.clamp_min(torch.finfo(torch.float32).tiny)


def _states(model: nn.Module, batch: Any) -> list[Tensor]:
    """Hidden states and outputs of a transformers model, or the tensors that any other model gives."""
    if hasattr(model, "config") and hasattr(model.config, "output_hidden_states"):
        outputs = run_batch(model, {**batch, "output_hidden_states": True})
        hidden = [getattr(outputs, name, None) or () for name in _HIDDEN_STATES]
        return [*(state for states in hidden for state in states[1:]), outputs[0]]
    outputs = run_batch(model, batch)
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    found = outputs if isinstance(outputs, tuple | list) else [outputs]
    return [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]
