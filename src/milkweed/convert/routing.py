"""Which inputs the experts of a model were given while it ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from milkweed.convert.split_experts import SplitExperts


class Routing:
    """What the split experts of a model were called with in one forward pass, by their names."""

    def __init__(self, model: nn.Module) -> None:
        self._experts = _split(model)
        self._calls: defaultdict[str, list[tuple[Tensor, ...]]] = defaultdict(list)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the calls from here on, instead of those before."""
        self._calls.clear()

        def note(name: str) -> Any:
            return lambda module, inputs: self._calls[name].append(inputs[1:])

        handles = [module.register_forward_pre_hook(note(name)) for name, module in self._experts.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def repeated_in(self, copy: nn.Module) -> Iterator[None]:
        """Let the experts of a copy of the model send its inputs where they were sent in the model, call by call."""
        remaining = {name: iter(calls) for name, calls in self._calls.items()}

        def repeat(name: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return inputs[0], *next(remaining[name])

            return hook

        handles = [module.register_forward_pre_hook(repeat(name)) for name, module in _split(copy).items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def mask(self, layer: str, mask: Tensor | None) -> Tensor | None:
        """Of a mask (B, L) of positions what holds for the inputs of a layer in the last call of its experts."""
        experts, split, inner = layer.rpartition(".split.")
        if mask is None or not split or not self._calls[experts]:
            return mask
        choices = self._calls[experts][-1][0]
        if len(choices) != mask.numel():
            return mask
        return mask.flatten().to(choices.device)[(choices == int(inner.partition(".")[0])).any(-1)]


def _split(model: nn.Module) -> dict[str, SplitExperts]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SplitExperts)}
