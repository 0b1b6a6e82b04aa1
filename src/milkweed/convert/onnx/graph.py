"""One ONNX graph to be made: a module, what goes in and comes out, and which axes may have any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from milkweed.convert.hub.inputs import SAMPLES_PER_TOKEN

BATCH, LENGTH, SAMPLES = "batch_size", "sequence_length", "samples"
Sizes = Mapping[str, int]
# Sizes that differ, as torch.export would take two axes of one size for the same.
TRACED: dict[str, int] = {BATCH: 3, LENGTH: 11}
OTHER_TRACED = (5, 13, 7, 17, 19)
CHECKED: tuple[tuple[int, int], ...] = ((1, 1), (2, 17), (5, 32), (1, 128))  # batch size, all other axes
TIMED = (8, 128)


@dataclasses.dataclass(frozen=True)
class Input:
    """An input.

    Attributes:
        shape: Its axes: a number, or the name of an axis whose size is free.
        make: Makes numbers for it, given the shape in numbers, the sizes of all axes and a source of random numbers.
    """

    shape: tuple[int | str, ...]
    make: Callable[[tuple[int, ...], Sizes, Generator], Tensor]


@dataclasses.dataclass(frozen=True)
class Graph:
    """What becomes one file.

    Attributes:
        module: Takes the inputs by position and returns a tuple of tensors, the outputs.
        inputs: By name, in order.
        outputs: Names.
        limits: The largest size of an axis, where there is one.
        prefix: Of the file's name, where a model needs several files.
        pinned: Sizes of axes that are not free any more.
    """

    module: nn.Module
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    pinned: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def axes(self) -> list[str]:
        """Names of the axes whose size is free, in order."""
        named = (axis for each in self.inputs.values() for axis in each.shape if isinstance(axis, str))
        return list(dict.fromkeys(named))

    def traced(self) -> dict[str, int]:
        """Sizes to trace with."""
        others = iter(OTHER_TRACED)
        return self._within({axis: TRACED.get(axis) or next(others) for axis in self.axes})

    def checked(self) -> list[dict[str, int]]:
        """Sizes that were not traced."""
        return list({tuple(sizes.items()): sizes for sizes in (self.sized(*each) for each in CHECKED)}.values())

    def sized(self, batch: int, other: int) -> dict[str, int]:
        """Sizes within the limits."""
        return self._within({axis: batch if axis.endswith(BATCH) else other for axis in self.axes})

    def _within(self, sizes: Sizes) -> dict[str, int]:
        found = {axis: min(size, self.limits.get(axis, size)) for axis, size in sizes.items()}
        # Of sound, a step as short as a token is read is too short for any filter.
        return {axis: SAMPLES_PER_TOKEN * (size + 1) if axis == SAMPLES else size for axis, size in found.items()}

    def example(self, sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
        """Make inputs."""
        generator, sizes = Generator().manual_seed(seed), {**self.pinned, **sizes}
        shapes = {
            name: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in each.shape)
            for name, each in self.inputs.items()
        }
        return {name: each.make(shapes[name], sizes, generator) for name, each in self.inputs.items()}


def tokens(count: int, *shape: int | str) -> Input:
    """Tokens from 0 to ``count - 1``; the lowest, which often mean the padding and the like, are seldom drawn."""

    def make(shape: tuple[int, ...], _: Sizes, generator: Generator) -> Tensor:
        return torch.randint(min(5, count - 1), count, shape, generator=generator)

    return Input(shape or (BATCH, LENGTH), make)


def mask(*shape: int | str) -> Input:
    """A mask (B, L): 1 for tokens, 0 for the padding behind them."""

    def make(shape: tuple[int, ...], _: Sizes, generator: Generator) -> Tensor:
        batch, length = shape
        return (torch.arange(length) < _lengths(batch, length, generator)[:, None]).long()

    return Input(shape or (BATCH, LENGTH), make)


def lengths(of: str = LENGTH) -> Input:
    """The valid steps (B,) of padded sequences."""
    return Input((BATCH,), lambda shape, sizes, generator: _lengths(shape[0], sizes[of], generator))


def numbers(*shape: int | str) -> Input:
    """Normal numbers."""
    return Input(shape, lambda shape, _, generator: torch.randn(shape, generator=generator))


def fixed(values: Tensor, *shape: int | str) -> Input:
    """Numbers that look like those given, which are of another size: of their kind, and in their range."""

    def make(shape: tuple[int, ...], _: Sizes, generator: Generator) -> Tensor:
        if values.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=values.dtype)
        if values.dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
        return torch.randint(low, high + 1, shape, generator=generator, dtype=values.dtype)

    return Input(shape, make)


def _lengths(batch: int, length: int, generator: Generator) -> Tensor:
    drawn = torch.randint(1, length + 1, (batch,), generator=generator)
    drawn[0] = length
    return drawn


class Called(nn.Module):
    """Calls a model by the names of its arguments and takes some of its outputs."""

    def __init__(self, model: nn.Module, arguments: tuple[str, ...], outputs: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.model, self.arguments, self.outputs, self.options = model, arguments, outputs, options

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call it."""
        found = self.model(**dict(zip(self.arguments, inputs, strict=True)), **self.options)
        return tuple(found[name] for name in self.outputs)
