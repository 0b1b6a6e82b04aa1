"""Limits on what a file may ask for, checked before anything is built from it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Larger numbers are no sizes that a computer could hold.
_LARGEST = 2**31
# One layer has at most as many factors as there are bits in a size, and its dense form one weight.
_PER_TENSOR, _FREE = 64, 1024
# A model that computes tables, such as masks of attention, instead of storing them may fill so many numbers with them.
_TABLES, _TABLES_PER_NUMBER = 2**27, 16
# Computed on the way in any case, e.g. by constructors that know no devices.
_NUMBERS = 2**24
# Configs of transformers make lists and tables of these lengths, as of the names of all labels.
_COUNTS = re.compile(r"(num|n)_\w+|\w*(layers|depth|blocks|stages)\w*")
_FREE_COUNT = 2**20
_LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks|stages)|n_layer|depth")


@contextmanager
def limited(tensors: int) -> Iterator[None]:
    """Refuse to build a module of more parts than a file has tensors for, while they are made one by one."""
    most = _PER_TENSOR * tensors + _FREE
    thread, made = threading.get_ident(), [0]

    def count(*_: object) -> None:
        if threading.get_ident() != thread:
            return
        made[0] += 1
        if made[0] > 2 * most:
            raise ValueError(f"it would have more than {most:,} parts, but the file holds {tensors:,} tensors")

    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_numbers(stored: Mapping[str, Tensor]) -> Iterator[None]:
    """Build modules on the meta device, and refuse those that a file cannot fill before they take time or memory."""
    with torch.device("meta"), limited(len(stored)), _SmallNumbers(max(_NUMBERS, _count(stored))):
        yield


class _SmallNumbers(TorchDispatchMode):
    """Refuse operations on large tensors that are not on the meta device; some modules compute such at their start."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor) and not each.is_meta and each.numel() > self.most:
                raise ValueError(
                    f"it would compute {each.numel():,} numbers to begin with; for a file of this size at most "
                    f"{self.most:,}"
                )
        return func(*args, **(kwargs or {}))


def _count(stored: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in stored.values())


def check_numbers(value: Any, where: str) -> None:
    """Refuse whole numbers in a config that are too large for any size."""
    if isinstance(value, dict):
        for key, each in value.items():
            check_numbers(each, f"{where}.{key}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            check_numbers(each, f"{where}[{index}]")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{where} must be at most {_LARGEST}; it has {len(str(abs(value)))} digits")


def check_counts(config: Any, stored: Mapping[str, Tensor], where: str = "config.json") -> None:
    """Refuse a config of transformers with more layers, labels and the like than the stored tensors allow."""
    numbers = _count(stored)
    layers, counts = max(len(stored), _FREE), max(numbers, _FREE_COUNT)

    def check(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                check(each, f"{name}.{key}")
        elif isinstance(value, list):
            for each in value:
                check(each, name)
        elif isinstance(value, int):
            key = name.rpartition(".")[2]
            if _LAYERS.fullmatch(key) and value > layers:
                raise ValueError(f"{name} has {value} layers, but only {len(stored)} tensors are stored")
            if _COUNTS.fullmatch(key) and value > counts:
                raise ValueError(f"{name} is {value}, but only {numbers} numbers are stored")

    check(config, where)


def check_tables(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Refuse a model that would fill its memory with tables which its file does not hold."""
    tables = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    size = sum(table.numel() for table in tables.values())
    most = max(_TABLES, _TABLES_PER_NUMBER * _count(stored))
    if size > most:
        name = max(tables, key=lambda each: tables[each].numel())
        raise ValueError(
            f"the tables that it computes would have {size:,} numbers, {name} of shape {tuple(tables[name].shape)} "
            f"the most; for a file of this size at most {most:,}"
        )
