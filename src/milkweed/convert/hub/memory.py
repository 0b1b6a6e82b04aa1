"""Keeping the memory of a conversion near that of one model."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from milkweed.convert.conversion_report import ConversionReport


def give_back() -> None:
    """Return freed memory to the system; the C library of Linux keeps what tensors of less than 32 MiB leave."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def inner_layers_only(model: nn.Module, preview: ConversionReport, whole_outputs: bool) -> Iterator[None]:
    """Let a transformers model compute only what its inner layers read, while the block runs.

    Keys and values of all layers, kept for tokens to come, and outputs over a whole vocabulary can each take more
    memory than the model itself. Outputs are those of the last position, unless ``whole_outputs`` are wanted or the
    head is converted, which then sees all inputs.
    """
    converted = {name for line in preview.converted for name in line.names}
    head = _head(model)
    kept = all(name not in converted for name, module in model.named_modules(remove_duplicate=False) if module is head)
    cut = head is not None and kept and not whole_outputs
    handle = head.register_forward_pre_hook(_last_position) if head is not None and cut else None
    try:
        with without_cache(model):
            yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let a transformers model keep no keys and values while the block runs."""
    configs: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    found = {id(config): config for config in configs}
    caching = [config for config in found.values() if getattr(config, "use_cache", False)]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True


def _head(model: Any) -> nn.Module | None:
    try:
        found = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # several towers
        return None
    return found if isinstance(found, nn.Module) else None


def _last_position(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0][:, -1:], *inputs[1:]) if inputs and inputs[0].ndim == 3 else inputs
