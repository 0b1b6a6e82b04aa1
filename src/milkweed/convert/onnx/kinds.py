"""The graphs of a model: which inputs and outputs it has, by what kind of model it is."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.input_moments import evaluating
from milkweed.convert.onnx import hub_kinds, own_kinds
from milkweed.convert.onnx.graph import BATCH, LENGTH, Graph, Input, fixed
from milkweed.convert.onnx.loading import Loaded
from milkweed.models.base import Model
from milkweed.nn import Stepper


def find_graphs(loaded: Loaded, inputs: Mapping[str, Tensor] | None, length: int | None) -> list[Graph]:
    """Say which graphs a model becomes, with a fixed length if one is given."""
    with evaluating(loaded.model):
        graphs = _find(loaded, inputs)
    if length is None:
        return graphs
    found = [_with_length(graph, length) for graph in graphs]
    if not any(LENGTH in graph.axes for graph in graphs):
        raise ValueError(f"length={length} cannot be set: {loaded.name} has no input of a free length")
    return found


def _find(loaded: Loaded, inputs: Mapping[str, Tensor] | None) -> list[Graph]:
    model = loaded.model
    if inputs is not None:
        return [_as_given(model, inputs)]
    if isinstance(model, Stepper):
        return [own_kinds.stepper_graph(model)]
    if isinstance(model, Model):
        return [own_kinds.model_graph(model, loaded.name)]
    library = sys.modules.get("transformers")
    if library is not None and isinstance(model, library.PreTrainedModel):
        return hub_kinds.transformers_graphs(loaded)
    raise FolderError(
        f"{loaded.name} is neither a model of milkweed nor one of transformers; give inputs={{NAME: tensor, ...}}, "
        "examples for its forward pass"
    )


def _with_length(graph: Graph, length: int) -> Graph:
    limit = graph.limits.get(LENGTH, length)
    if length > limit:
        raise ValueError(f"length={length} is more than this model can read; its longest input has {limit}")

    def pinned(each: Input) -> Input:
        return dataclasses.replace(each, shape=tuple(length if axis == LENGTH else axis for axis in each.shape))

    # What depends on the length, such as a mask, still finds it among the sizes.
    return dataclasses.replace(
        graph, inputs={name: pinned(each) for name, each in graph.inputs.items()}, pinned={LENGTH: length}
    )


class _Given(nn.Module):
    """Calls a module with inputs by name and lists the tensors that it returns."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call it."""
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        leaves = torch.utils._pytree.tree_leaves(found)
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _as_given(model: nn.Module, inputs: Mapping[str, Tensor]) -> Graph:
    """A graph with the inputs that the user shows; their first axis is the batch, all others stay as they are."""
    called = _Given(model, tuple(inputs))
    try:
        with torch.no_grad():
            count = len(called(*inputs.values()))
    except Exception as error:  # of any model, so of any kind
        raise ValueError(f"the model does not run with inputs of {', '.join(inputs)}: {error}") from error
    made = {name: fixed(x, *((BATCH, *x.shape[1:]) if x.ndim else ())) for name, x in inputs.items()}
    names = ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
    return Graph(called, made, names)
