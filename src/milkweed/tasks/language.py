"""Language modelling: cross entropy of the next token, in bits per character and as perplexity."""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from milkweed.nn.lengths import valid_steps
from milkweed.tasks.base import STAGES, Batch, SequenceTask
from milkweed.tasks.tokens import check_token_batch


class Bits(MeanMetric):
    """A mean of natural logarithms, to the base 2."""

    def compute(self) -> torch.Tensor:
        """The mean.

        Returns:
            A scalar.
        """
        return super().compute() / math.log(2)


class Perplexity(MeanMetric):
    """The exponential of a mean cross entropy."""

    def compute(self) -> torch.Tensor:
        """Among how many equally likely tokens the model is in doubt.

        Returns:
            A scalar.
        """
        return super().compute().exp()


class Language(SequenceTask):
    """Train a causal model of tokens to tell the next one.

    Args:
        model: `model(tokens (B, L), lengths (B,)) -> logits (B, L, vocabulary)`; only valid steps count.
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `cosine` down to zero at the end of the training, or `constant`.

    Raises:
        ValueError: If a value is out of its range.
    """

    metric = "bits_per_character"
    larger_is_better = False

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        ssm_lr: float | None = None,
        warmup_steps: int = 0,
        schedule: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        super().__init__(model, lr, weight_decay, ssm_lr, warmup_steps, schedule)
        self.bits = nn.ModuleDict({f"{stage}_bits": Bits() for stage in STAGES})
        self.perplexities = nn.ModuleDict({f"{stage}_perplexity": Perplexity() for stage in STAGES})
        self.bits["train_bits"].persistent(True)
        self.perplexities["train_perplexity"].persistent(True)

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of the valid steps, in natural logarithms.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Logits, (B, L, vocabulary).
            batch: What the data module yields.

        Returns:
            The scalar loss.

        Raises:
            ValueError: If the model does not give logits for every step.
        """
        targets = batch["targets"]
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"language modelling needs logits for every step, {(*targets.shape, 'vocabulary')}; the model gave "
                f"{tuple(outputs.shape)}; set --model.pooling none"
            )
        valid = valid_steps(batch["lengths"], targets.shape[1])
        return F.cross_entropy(outputs[valid], targets[valid])

    def score(self, stage: str) -> Metric:
        """The bits per character of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric.
        """
        return self.bits[f"{stage}_bits"]

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """The perplexity of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric by its name.
        """
        return {"perplexity": self.perplexities[f"{stage}_perplexity"]}

    def on_train_epoch_start(self) -> None:
        """Start the training averages anew."""
        super().on_train_epoch_start()
        self.perplexities["train_perplexity"].reset()

    def measure(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every valid step counting the same, or every character of the targets.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Logits, (B, L, vocabulary).
            batch: What the data module yields.
            loss: The batch's loss.
        """
        steps = batch["lengths"].sum()
        for metric in (self.losses[f"{stage}_loss"], *self.further_scores(stage).values()):
            metric.update(loss, weight=steps)
        # Tokens may stand for several characters, or for none.
        characters = batch["characters"].sum() if "characters" in batch else steps
        self.score(stage).update(loss * steps / characters.clamp(min=1), weight=characters)

    def check_inputs(self, stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
        """Refuse what are no tokens.

        Args:
            stage: `train`, `val` or `test`.
            batch_idx: Number of the batch.
            inputs: The batch.
        """
        check_token_batch(stage, batch_idx, inputs)
