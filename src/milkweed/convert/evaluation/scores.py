"""Figures of one model on a table that says what is right: called once dense, once converted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed.convert.evaluation.data import Table
from milkweed.convert.evaluation.outputs import tensor, text_vectors
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.text_batches import Row, padded
from milkweed.convert.input_moments import run_batch


class Rows:
    """Tokenised rows, and what a model gives for them in their order."""

    def __init__(self, tokenizer: Any, rows: list[Row], batch_size: int, pooling: str, steps: Progress) -> None:
        self.tokenizer, self.rows, self.batch_size = tokenizer, rows, batch_size
        self.pooling, self.steps = pooling, steps

    def vectors(self, model: Any) -> Tensor:
        """The vector of each text, (N, n)."""
        return self._of(model, lambda outputs, inputs: text_vectors(outputs, inputs, self.pooling))

    def logits(self, model: Any) -> Tensor:
        """The logits for each row, (N, C)."""
        return self._of(model, lambda outputs, _: tensor(outputs, "logits"))

    def _of(self, model: Any, take: Any) -> Tensor:
        batches = list(padded(self.tokenizer, model, self.rows, self.batch_size))
        places, found = [], []
        for indices, inputs in self.steps.read(batches, len(batches)):
            places += indices
            found.append(take(run_batch(model, inputs), inputs).double().cpu())
        return torch.cat(found)[torch.tensor(places).argsort()]


def pair_spearman(model: Any, rows: Rows, scores: Tensor) -> float:
    """Correlation between ranks of scores and of cosines; the rows are all first texts, then all second ones."""
    first, second = rows.vectors(model).chunk(2)
    return spearman(F.cosine_similarity(first, second), scores)


def output_spearman(model: Any, rows: Rows, scores: Tensor) -> float:
    """Correlation between ranks of scores and of what a regression gives."""
    return spearman(rows.logits(model)[:, 0], scores)


def accuracy(model: Any, rows: Rows, labels: Tensor) -> float:
    """Share of rows whose class is right."""
    return float((rows.logits(model).argmax(-1) == labels).double().mean())


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation of two vectors; equal values share the mean of their ranks."""
    if len(x.unique()) < 2:
        raise FolderError("the model gives one number for all rows, which correlates with nothing; check the rows")
    a, b = (_ranks(each) for each in (x, y))
    return float(F.cosine_similarity(a - a.mean(), b - b.mean(), 0))


def _ranks(x: Tensor) -> Tensor:
    _, places, counts = x.unique(sorted=True, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[places]


def classes(table: Table, config: Any) -> Tensor:
    """The classes of a table, given as numbers or by the names that a model's config has for them."""
    names = {str(name): int(number) for name, number in (getattr(config, "label2id", None) or {}).items()}
    found = []
    for row, target in enumerate(table.targets, 1):
        number = names.get(target, int(target) if target.isdecimal() else -1)
        if not 0 <= number < config.num_labels:
            raise FolderError(
                f"metric_data: the label {target!r} of row {row} is none of the model's {config.num_labels}: numbers "
                f"from 0, or {', '.join(sorted(names, key=lambda name: names[name])[:5])}"
            )
        found.append(number)
    return torch.tensor(found)
