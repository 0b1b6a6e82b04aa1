"""A dense model and what it becomes, with the memory of one where that is possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from milkweed.convert.hub.exchange import exchanged
from milkweed.convert.input_moments import evaluating
from milkweed.convert.plan import ConversionPlan


@dataclasses.dataclass(frozen=True)
class Pair:
    """The dense model and a plan that is not carried out yet, or two models."""

    dense_model: nn.Module
    plan: ConversionPlan | None = None
    converted_model: nn.Module | None = None

    @contextmanager
    def dense(self) -> Iterator[nn.Module]:
        """Give the dense model, evaluating."""
        with evaluating(self.dense_model):
            yield self.dense_model

    @contextmanager
    def converted(self) -> Iterator[nn.Module]:
        """Give the converted model, evaluating; until the block ends the dense one may be it."""
        model = self.converted_model or self.dense_model
        with nullcontext() if self.plan is None else exchanged(model, self.plan), evaluating(model):
            yield model
