"""Inputs and outputs of milkweed's own models and steppers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.onnx.graph import BATCH, LENGTH, Graph, Input, fixed, lengths, numbers, tokens
from milkweed.models.base import Model
from milkweed.nn import Stepper

LIMITS = ("length", "l_max")
SHORT, LONG = 4, 12


def model_graph(model: Model, name: str) -> Graph:
    """The graph of a model: ``inputs`` and, where padding matters, ``lengths``."""
    limit = min(_limits(model.options), default=None)
    first, free = _first_input(model, name, limit)
    inputs = {"inputs": first}
    if free and _reads_lengths(model, Graph(_Positional(model), inputs, ("outputs",), _limit(limit))):
        inputs["lengths"] = lengths()
    return Graph(_Positional(model), inputs, ("outputs",), _limit(limit) if free else {})


def stepper_graph(stepper: Stepper) -> Graph:
    """The graph of one step: ``u`` and the tensors of the state go in, ``y`` and those of the next state come out."""
    state = stepper.initial_state(2)
    leaves, spec = trees.tree_flatten(state)
    others = trees.tree_leaves(stepper.initial_state(3))
    inputs = {"u": _step_input(stepper, state)}
    module = _Step(stepper, spec, leaves)
    _check_constants(module, inputs["u"], state)
    names = [f"state_{index}" for index in range(len(module.places))]
    for name, place in zip(names, module.places, strict=True):
        pairs = zip(leaves[place].shape, others[place].shape, strict=True)
        inputs[name] = fixed(leaves[place], *(a if a == b else BATCH for a, b in pairs))
    return Graph(module, inputs, ("y", *(f"next_{name}" for name in names)))


def _check_constants(module: _Step, first: Input, state: Any) -> None:
    """Refuse a state in which anything except tensors changes."""
    u = Graph(module, {"u": first}, ()).example({BATCH: 2})["u"]
    after = trees.tree_leaves(module.stepper(u, state)[1])
    before = trees.tree_leaves(state)
    if len(before) != len(after) or any(
        isinstance(one, Tensor) != isinstance(other, Tensor) or (not isinstance(one, Tensor) and one != other)
        for one, other in zip(before, after, strict=False)
    ):
        raise FolderError(
            f"{type(module.stepper).__name__} cannot be exported: something except tensors changes in its state, such "
            "as the number of steps"
        )


class _Positional(nn.Module):
    """A model whose forward pass takes the inputs and perhaps their lengths."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run it."""
        return (self.model(*inputs),)


class _Step(nn.Module):
    """A stepper whose state is a list of tensors."""

    def __init__(self, stepper: nn.Module, spec: trees.TreeSpec, leaves: list[Any]) -> None:
        super().__init__()
        self.stepper, self.spec = stepper, spec
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take a step."""
        leaves: list[Any] = list(self.constants)
        for place, tensor in zip(self.places, inputs[1:], strict=True):
            leaves[place] = tensor
        y, state = self.stepper(inputs[0], trees.tree_unflatten(leaves, self.spec))
        after = trees.tree_leaves(state)
        return (y, *(after[place] for place in self.places))


def _limit(limit: int | None) -> Mapping[str, int]:
    return {} if limit is None else {LENGTH: limit}


def _limits(options: Any) -> Iterator[int]:
    """The longest inputs that options name, at any depth."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key in LIMITS and isinstance(value, int) and not isinstance(value, bool):
                yield value
            else:
                yield from _limits(value)


def _first_input(model: Model, name: str, limit: int | None) -> tuple[Input, bool]:
    """What a model reads, found by trying, and whether its length is free."""
    size = model.options.get("d_input")
    channels = size if isinstance(size, int) else 1
    short, long = (min(length, limit or length) for length in (SHORT, LONG))
    error: Exception | None = None
    for shape in ((), (channels,)):  # tokens, features
        made = tokens(channels, BATCH, LENGTH) if not shape else numbers(BATCH, LENGTH, channels)
        for whole in dict.fromkeys((long, limit or long)):
            error = _failure(model, made, whole)
            if error is None:
                free = whole == long and _failure(model, made, short) is None
                return (made if free else _pinned(channels, shape, whole)), free
    image = _image(model, channels)
    if image is not None:
        return image, False
    assert error is not None
    raise FolderError(f"{name} takes neither tokens nor features: {first_line(error)}") from error


def _pinned(channels: int, shape: tuple[int, ...], length: int) -> Input:
    return numbers(BATCH, length, *shape) if shape else tokens(channels, BATCH, length)


def _image(model: Model, channels: int) -> Input | None:
    size = model.options.get("image_size")
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    made = numbers(BATCH, channels, *sides)
    return made if len(sides) == 2 and _failure(model, made, 1) is None else None


def _failure(model: nn.Module, made: Input, length: int) -> Exception | None:
    graph = Graph(model, {"inputs": made}, ())
    try:
        model(*graph.example({BATCH: 2, LENGTH: length}).values())
    except Exception as error:  # of any model, so of any kind
        return error
    return None


def _reads_lengths(model: nn.Module, graph: Graph) -> bool:
    """Whether the valid steps of a padded sequence come out otherwise if their number is given."""
    if "lengths" not in inspect.signature(model.forward).parameters:
        return False
    inputs = graph.example({BATCH: 2, LENGTH: graph.limits.get(LENGTH, LONG)})["inputs"]
    if inputs.shape[1] < 3:
        return False
    valid = inputs.shape[1] // 2
    plain, told = model(inputs), model(inputs, torch.full((2,), valid))
    if plain.ndim == 3:
        plain, told = plain[:, :valid], told[:, :valid]
    return not torch.allclose(plain, told, rtol=1e-4, atol=1e-5)


def _step_input(stepper: Stepper, state: Any) -> Input:
    """What one step reads, found by trying: features, of a number that a parameter tells, or tokens."""
    known = [getattr(stepper, name, None) for name in ("d_input", "d_model", "in_features", "channels", "heads")]
    sizes = dict.fromkeys([size for size in known if isinstance(size, int)] + _widths(stepper))
    error: Exception | None = None
    for size in sizes:
        for made in (tokens(size, BATCH), numbers(BATCH, size)):
            try:
                stepper(*Graph(stepper, {"u": made}, ()).example({BATCH: 2}).values(), state)
            except Exception as failed:  # of any stepper, so of any kind
                error = failed
            else:
                return made
    raise FolderError(
        f"{type(stepper).__name__} does not say what a step reads"
        f"{'' if error is None else f': {first_line(error)}'}; give inputs={{'u': ..., 'state': ...}}"
    )


def _widths(stepper: nn.Module) -> list[int]:
    """Sizes of its parameters and buffers, which may be that of a step."""
    tensors = [*stepper.parameters(), *stepper.buffers()]
    return [size for tensor in tensors for size in tensor.shape]
