"""Masked language modelling: cross entropy of the masked tokens, as perplexity, and how many are told right."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from milkweed.data.masked_text import IGNORED
from milkweed.models.m2_bert import M2Bert, MaskedLmHead
from milkweed.tasks.base import STAGES, Batch
from milkweed.tasks.language import Perplexity
from milkweed.tasks.tokens import TokenTask


class MaskedLanguage(TokenTask):
    """Train a bidirectional model of tokens to tell those that are masked.

    Args:
        model: `model(tokens (B, L), lengths (B,)) -> logits (B, L, vocabulary)`; only the masked tokens count.
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `linear` down to 2% at the end of the training, `cosine` down to zero, or
            `constant`.
        pretrained: Where the model starts: a run, a folder or file written by `save_pretrained`, or one as M2-BERT's
            authors publish it. None to start afresh.

    Raises:
        ValueError: If a value is out of its range.

    Source:
        BERT (arXiv 1810.04805), without its second task, as in M2-BERT (arXiv 2310.12109).
    """

    metric = "perplexity"
    larger_is_better = False

    def __init__(
        self,
        model: nn.Module,
        lr: float = 8e-4,
        weight_decay: float = 0.0125,
        ssm_lr: float | None = None,
        warmup_steps: int = 0,
        schedule: Literal["linear", "cosine", "constant"] = "linear",
        pretrained: str | None = None,
    ) -> None:
        super().__init__(model, lr, weight_decay, ssm_lr, warmup_steps, schedule, pretrained)
        self.perplexities = nn.ModuleDict({f"{stage}_perplexity": Perplexity() for stage in STAGES})
        self.accuracies = nn.ModuleDict({f"{stage}_accuracy": MeanMetric() for stage in STAGES})
        self.perplexities["train_perplexity"].persistent(True)
        self.accuracies["train_accuracy"].persistent(True)

    def run_model(self, batch: Batch) -> torch.Tensor:
        """Run the model, its head on the masked tokens alone where it is known to work token by token.

        Args:
            batch: What the data module yields.

        Returns:
            Logits of the M masked tokens, (M, vocabulary).

        Raises:
            ValueError: If the model does not give logits for every token.
        """
        chosen = batch["targets"] != IGNORED
        if isinstance(self.model, M2Bert) and isinstance(self.model.head, MaskedLmHead):
            encoder = self.model.encoder
            return self.model.head(encoder(batch["inputs"], batch["lengths"])[chosen], encoder.tokens.weight)
        if isinstance(self.model, M2Bert):
            raise ValueError(
                "masked language modelling needs logits for every token, but this M2Bert has "
                f"head={self.model.options['head']}; set --model.head masked_lm"
            )
        logits = self(batch["inputs"], batch["lengths"])
        if logits.shape[:-1] != chosen.shape:
            raise ValueError(
                f"masked language modelling needs logits for every token, {(*chosen.shape, 'vocabulary')}; the model "
                f"gave {tuple(logits.shape)}; set --model.head masked_lm, or --model.pooling none"
            )
        return logits[chosen]

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of the masked tokens, in natural logarithms.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Logits, (M, vocabulary).
            batch: What the data module yields.

        Returns:
            The scalar loss.

        Raises:
            ValueError: If nothing is masked.
        """
        if not len(outputs):
            raise ValueError("no token of the batch is masked; use MaskedText, which masks one in every window")
        return F.cross_entropy(outputs, _masked(batch))

    def score(self, stage: str) -> Metric:
        """The perplexity of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric.
        """
        return self.perplexities[f"{stage}_perplexity"]

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """The share of masked tokens that are told right in one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric by its name.
        """
        return {"accuracy": self.accuracies[f"{stage}_accuracy"]}

    def on_train_epoch_start(self) -> None:
        """Start the training averages anew."""
        super().on_train_epoch_start()
        self.accuracies["train_accuracy"].reset()

    def measure(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every masked token counting the same.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Logits, (M, vocabulary).
            batch: What the data module yields.
            loss: The batch's loss.
        """
        for metric in (self.losses[f"{stage}_loss"], self.score(stage)):
            metric.update(loss, weight=len(outputs))
        self.accuracies[f"{stage}_accuracy"].update(outputs.argmax(-1) == _masked(batch))


def _masked(batch: Batch) -> torch.Tensor:
    return batch["targets"][batch["targets"] != IGNORED]
