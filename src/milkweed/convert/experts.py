"""Splitting the fused experts of a model into linear layers, for planning or for good, and putting them together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from milkweed.convert.sites import parameter_owners, replace, what_would_be_lost
from milkweed.convert.split_experts import SplitExperts, fused_names, is_fused


@contextmanager
def experts_apart(model: nn.Module, names: Iterable[str] | None = None) -> Iterator[None]:
    """Let a model have its fused experts split, on the memory that they have, and its own modules afterwards.

    Given names, only the experts are split in which layers of these names lie.
    """
    found = _fused(model)
    if names is not None:
        named = list(names)
        found = {module: paths for module, paths in found.items() if _inside(named, paths)}
    try:
        for module, names in found.items():
            replace(model, names, SplitExperts(module))
        yield
    finally:
        for module, names in found.items():
            replace(model, names, module)


@torch.no_grad()
def split_recorded_(model: nn.Module, names: Iterable[str]) -> None:
    """Split the fused experts in which layers of these names lie; what else they hold becomes layers of its own.

    The layers named are to be replaced: until then they are views of the fused memory. On the meta device too.
    """
    named = list(names)
    for module, paths in _fused(model).items():
        inside = _inside(named, paths)
        if not inside:
            continue
        split = SplitExperts(module)
        for name, layer in split.named_modules():
            if isinstance(layer, nn.Linear) and name not in inside:
                for parameter in layer.parameters():
                    parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
        replace(model, paths, split)


def fuse_(model: nn.Module) -> None:
    """Put the split experts of a model together again where all their layers are dense."""
    found: defaultdict[SplitExperts, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SplitExperts) and name and module.can_fuse():
            found[module].append(name)
    for module, names in found.items():
        replace(model, tuple(names), module.to_fused())


def in_experts(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the layers named that are in split experts, so that inputs of a model may pass them by."""
    within = tuple(f"{name}.split." for name, module in model.named_modules() if isinstance(module, SplitExperts))
    return {name for name in names if name.startswith(within)}


def _inside(names: Iterable[str], paths: Iterable[str]) -> set[str]:
    """The names that lie below a path, relative to it."""
    return {name.removeprefix(f"{path}.") for name in names for path in paths if name.startswith(f"{path}.")}


def _fused(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """The fused experts of a model, by all their paths, that can be replaced without loss."""
    found: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if name and is_fused(module):
            found[module].append(name)
    if not found:
        return {}
    owners = parameter_owners(model)
    return {
        module: tuple(names)
        for module, names in found.items()
        if what_would_be_lost(module) is None
        and all(owners[id(module.get_parameter(name))] <= set(names) for name in fused_names(module))
    }
