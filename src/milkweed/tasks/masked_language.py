"""Masked language modelling: cross entropy and perplexity of the masked tokens, and the share predicted right."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from milkweed._arguments import checked
from milkweed._batches import IGNORED, Batch
from milkweed.models.m2_bert import M2Bert, MaskedLmHead
from milkweed.tasks.base import STAGES
from milkweed.tasks.language import Perplexity
from milkweed.tasks.tokens import TokenTask


class MaskedLanguage(TokenTask):
    """Train a bidirectional model of tokens to predict those that are masked.

    Args:
        pretrained: Where the model starts: a run, a folder or file written by `save_pretrained`, or one as M2-BERT's
            authors publish it. None to start afresh.

    Source:
        BERT (arXiv 1810.04805), without its second task, as in M2-BERT (arXiv 2310.12109).
    """

    metric = "perplexity"
    larger_is_better = False
    optimisation: ClassVar = {"lr": 8e-4, "weight_decay": 0.0125, "schedule": "linear"}

    @checked(but=("pretrained",))
    def __init__(
        self,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(pretrained)
        self.perplexities = nn.ModuleDict({f"{stage}_perplexity": Perplexity() for stage in STAGES})
        self.accuracies = nn.ModuleDict({f"{stage}_accuracy": MeanMetric() for stage in STAGES})

    def run_model(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Run the model, its head on the masked tokens alone where it is known to work token by token."""
        chosen = batch["targets"] != IGNORED
        if isinstance(model, M2Bert) and isinstance(model.head, MaskedLmHead):
            encoder = model.encoder
            return model.head(encoder(batch["inputs"], batch["lengths"])[chosen], encoder.tokens.weight)
        if isinstance(model, M2Bert):
            raise ValueError(
                "masked language modelling needs logits for every token, but this M2Bert has "
                f"head={model.options['head']}; set model.head=masked_lm"
            )
        logits = model(batch["inputs"], batch["lengths"])
        if logits.shape[:-1] != chosen.shape:
            raise ValueError(
                f"masked language modelling needs logits for every token, {(*chosen.shape, 'vocabulary')}; the model "
                f"gave {tuple(logits.shape)}; set model.head=masked_lm, or model.pooling=none"
            )
        return logits[chosen]

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of the masked tokens, in natural logarithms."""
        if not len(outputs):
            raise ValueError("no token of the batch is masked; use MaskedText, which masks one in every window")
        return F.cross_entropy(outputs, _masked(batch))

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The likeliest token for every masked one of the batch, in order, and its probability."""
        probabilities, tokens = outputs.float().softmax(-1).max(-1)
        return {"tokens": tokens, "probabilities": probabilities}

    def score(self, stage: str) -> Metric:
        """The perplexity of one stage."""
        return self.perplexities[f"{stage}_perplexity"]

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """The share of masked tokens that are predicted right in one stage."""
        return {"accuracy": self.accuracies[f"{stage}_accuracy"]}

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every masked token counting the same."""
        for metric in (self.losses[f"{stage}_loss"], self.score(stage)):
            metric.update(loss, weight=len(outputs))
        self.accuracies[f"{stage}_accuracy"].update(outputs.argmax(-1) == _masked(batch))


def _masked(batch: Batch) -> torch.Tensor:
    return batch["targets"][batch["targets"] != IGNORED]
