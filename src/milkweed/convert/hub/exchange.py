"""A model that has the layers of a plan for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from milkweed.convert.experts import experts_apart
from milkweed.convert.plan import ConversionPlan
from milkweed.convert.sites import replace


@contextmanager
def exchanged(model: nn.Module, plan: ConversionPlan) -> Iterator[None]:
    """Put the layers of a plan into a model while the block runs."""
    with experts_apart(model, plan.layers):
        dense = {line.names: model.get_submodule(line.name) for line in plan.report.converted}
        try:
            for names in dense:
                replace(model, names, plan.layers[names[0]])
            yield
        finally:
            for names, layer in dense.items():
                replace(model, names, layer)
