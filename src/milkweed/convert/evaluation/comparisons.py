"""Figures from the outputs of two models on the same batches."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed.convert.evaluation.outputs import (
    IGNORED,
    Asked,
    main_output,
    places,
    predictions,
    tensor,
    text_vectors,
)
from milkweed.convert.evaluation.results import Figure

POOLED = {
    "cls": "the first token's vectors",
    "lasttoken": "the last token's vectors",
    "max": "the largest over tokens",
    "mean": "means over tokens",
}

SAME = {
    "causal": "same next token",
    "masked": "same guess of hidden tokens",
    "seq2seq": "same next token",
    "classes": "same class",
    "labels": "same labels",
    "tokens": "same class of a token",
    "spans": "same answer",
}


class Comparison(Protocol):
    """Sums up over batches."""

    def add(self, dense: Any, converted: Any, asked: Asked) -> None:
        """Take the outputs of both models for a batch in."""

    def figures(self) -> list[Figure]:
        """Give what came out."""


class Cosine:
    """Cosines between the vectors that both models give a text, and a token."""

    def __init__(self, pooling: str) -> None:
        self.pooling = pooling
        self.texts: list[Tensor] = []
        self.different: list[Tensor] = []
        self.tokens: list[Tensor] = []

    def add(self, dense: Any, converted: Any, asked: Asked) -> None:
        """Compare a batch."""
        old, new = (text_vectors(each, asked.inputs, self.pooling) for each in (dense, converted))
        self.texts.append(F.cosine_similarity(old, new).cpu())
        if len(old) > 1:
            self.different.append(F.cosine_similarity(old, old.roll(1, 0)).cpu())
        x, y = main_output(dense), main_output(converted)
        if x is not None and y is not None and x.ndim == 3:
            real = places(x, asked.inputs)
            self.tokens.append(F.cosine_similarity(x[real].double(), y[real].double()).cpu())

    def figures(self) -> list[Figure]:
        """Give the means, and the lowest cosine of a text."""
        texts = torch.cat(self.texts)
        detail = f"dense to converted, {POOLED[self.pooling] if self.tokens else 'the vectors that the model gives'}"
        if self.different:
            detail += f"; dense vectors of two different texts: {float(torch.cat(self.different).mean()):.2f}"
        found = [Figure("cosine of text vectors", float(texts.mean()), None, "higher", float(texts.min()), detail)]
        if self.tokens:
            tokens = torch.cat(self.tokens)
            found.append(
                Figure("cosine of token vectors", float(tokens.mean()), None, "higher", None, f"{len(tokens):,} tokens")
            )
        return found


class Perplexity:
    """exp of the mean negative log probability of the tokens that are asked for."""

    def __init__(self, hidden: bool) -> None:
        self.hidden = hidden
        self.sums = [0.0, 0.0]
        self.count = 0

    def add(self, dense: Any, converted: Any, asked: Asked) -> None:
        """Sum up over a batch."""
        assert asked.labels is not None
        self.count += int((asked.labels != IGNORED).sum())
        for index, outputs in enumerate((dense, converted)):
            logits = tensor(outputs, "logits")
            assert logits is not None
            wanted = asked.labels.to(logits.device)
            rows = logits[wanted != IGNORED].float()
            self.sums[index] += float(F.cross_entropy(rows, wanted[wanted != IGNORED], reduction="sum").double())

    def figures(self) -> list[Figure]:
        """Give the perplexity of both."""
        before, after = (_exp(total / max(1, self.count)) for total in self.sums)
        name = "perplexity of hidden tokens" if self.hidden else "perplexity"
        detail = f"{self.count:,} tokens" + (", 15% of every text hidden" if self.hidden else "")
        return [Figure(name, after, before, "lower", None, detail)]


class Agreement:
    """How often both models predict the same."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.same = self.count = 0

    def add(self, dense: Any, converted: Any, asked: Asked) -> None:
        """Compare a batch."""
        old, new = (predictions(self.kind, each, asked) for each in (dense, converted))
        self.same += int((old == new).all(-1).sum())
        self.count += len(old)

    def figures(self) -> list[Figure]:
        """Give the share."""
        what = "texts" if self.kind in {"classes", "labels", "spans"} else "tokens"
        share = self.same / max(1, self.count)
        return [Figure(SAME[self.kind], share, None, "higher", None, f"share of {self.count:,} {what}")]


class OutputError:
    """The error of outputs relative to how much the dense ones vary: 0 is none, 1 that of always guessing the mean."""

    def __init__(self) -> None:
        self.error = self.squares = 0.0
        self.mean: Tensor | float = 0.0
        self.count = 0

    def add(self, dense: Any, converted: Any, asked: Asked) -> None:
        """Sum up over a batch."""
        x, y = (main_output(each) for each in (dense, converted))
        assert x is not None
        assert y is not None
        real = places(x, asked.inputs) if x.ndim == 3 else slice(None)
        old, new = x[real].double().cpu(), y[real].double().cpu()
        self.error += float((new - old).square().sum())
        # Sums of squares about zero would lose what is small beside the mean.
        total, mean = self.count + len(old), old.mean(0)
        step = mean - self.mean
        self.squares += float((old - mean).square().sum() + step.square().sum() * (self.count * len(old) / total))
        self.mean, self.count = self.mean + step * (len(old) / total), total

    def figures(self) -> list[Figure]:
        """Give the error."""
        error = math.sqrt(self.error / self.squares) if self.squares else 0.0 if not self.error else math.inf
        detail = "of the outputs, relative to their spread; 1 is as bad as always the mean"
        return [Figure("relative error", error, None, "lower", None, detail)]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
