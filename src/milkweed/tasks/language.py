"""Language modelling: cross entropy of the next token, in bits per character and as perplexity."""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from milkweed._batches import Batch
from milkweed.nn.lengths import valid_steps
from milkweed.tasks.base import STAGES, Task
from milkweed.tasks.tokens import check_token_batch


class Bits(MeanMetric):
    """A mean of natural logarithms, to the base 2."""

    def compute(self) -> torch.Tensor:
        """The mean."""
        return super().compute() / math.log(2)


class Perplexity(MeanMetric):
    """The exponential of a mean cross entropy."""

    def compute(self) -> torch.Tensor:
        """The number of equally likely tokens among which the model is in doubt."""
        return super().compute().exp()


class Language(Task):
    """Train a causal model of tokens to predict the next one."""

    metric = "bits_per_character"
    larger_is_better = False
    optimisation: ClassVar = {"weight_decay": 0.1}

    def __init__(self) -> None:
        super().__init__()
        self.bits = nn.ModuleDict({f"{stage}_bits": Bits() for stage in STAGES})
        self.perplexities = nn.ModuleDict({f"{stage}_perplexity": Perplexity() for stage in STAGES})

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy of the valid steps, in natural logarithms."""
        targets = batch["targets"]
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"language modelling needs logits for every step, {(*targets.shape, 'vocabulary')}; the model gave "
                f"{tuple(outputs.shape)}; set model.pooling=none"
            )
        valid = valid_steps(batch["lengths"], targets.shape[1])
        return F.cross_entropy(outputs[valid], targets[valid])

    def score(self, stage: str) -> Metric:
        """The bits per character of one stage."""
        return self.bits[f"{stage}_bits"]

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """The perplexity of one stage."""
        return {"perplexity": self.perplexities[f"{stage}_perplexity"]}

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch, every valid step counting the same, or every character of the targets."""
        steps = batch["lengths"].sum()
        for metric in (self.losses[f"{stage}_loss"], *self.further_scores(stage).values()):
            metric.update(loss, weight=steps)
        # Tokens may stand for several characters, or for none.
        characters = batch["characters"].sum() if "characters" in batch else steps
        self.score(stage).update(loss * steps / characters.clamp(min=1), weight=characters)

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The likeliest next token after every step, (B, L)."""
        return {"tokens": outputs.argmax(-1)}

    def check_inputs(self, stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
        """Refuse inputs that are not tokens."""
        check_token_batch(stage, batch_idx, inputs)
