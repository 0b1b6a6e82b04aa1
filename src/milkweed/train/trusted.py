"""What a run's config.yaml may have built: a run folder is data, so nothing is imported because a file names it.

A class is built if it stands in a module that is loaded already, and is of a kind that recipes name: a model, task,
data module, callback, logger, profiler, strategy, accelerator or plugin, optimiser or schedule. Loaded are the modules
of this library, Lightning and torch, and what the user's program imported before. Names are looked up among loaded
modules: a refused one is never imported.
"""

import enum
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path, PurePath
from typing import Any

import yaml
from jsonargparse import get_loader
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment, LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from milkweed._registry import registered

KINDS = (
    *(nn.Module, LightningDataModule, Callback, Logger, Profiler, Strategy, Accelerator),
    *(CheckpointIO, ClusterEnvironment, LayerSync, Precision, Optimizer, LRScheduler),
)
# Loaded first, so that what they hold is found among loaded modules whatever the process has used so far.
_PUBLIC = (
    *("milkweed.data", "milkweed.models", "milkweed.tasks", "milkweed.nn", "milkweed.train.densify"),
    *(f"lightning.pytorch.{name}" for name in ("callbacks", "loggers", "strategies", "accelerators", "profilers")),
    *("lightning.pytorch.plugins", "lightning.pytorch.plugins.environments", "torch.optim.lr_scheduler"),
)
# Every training has them, and they write and remove files where their arguments say.
_INTERNAL = ("milkweed.train.callbacks.MetricsTable", "milkweed.train.checkpoints.KeepCheckpoints")
_SECTIONS = ("data", "model", "task")  # whose short names are registered ones
_SPEC = ("class_path", "init_args", "dict_kwargs")
_MOST_VALUES = 100_000
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_DATA = (*(str, int, float, bool, bytes, complex, type(None)), *(dict, list, tuple, set, frozenset))
_DATA += (date, timedelta, PurePath)


class UntrustedClassError(ValueError):
    """A file of a run names code that is not known to be harmless."""


def check_classes(content: Mapping[str, Any], file: Path, given: Collection[str] = ()) -> None:
    """Refuse a run's configuration that would import, build or call anything of unknown origin; nothing is imported.

    ``given`` are import paths that the user has named too, in a recipe or on the command line.
    """
    for module in _PUBLIC:
        importlib.import_module(module)
    _Check(file, frozenset(given)).visit(dict(content), "", True)


def import_paths(values: Any) -> set[str]:
    """All texts in a user's recipe or options that may be import paths; they are not looked up."""
    found: set[str] = set()
    waiting = [values]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)
        elif isinstance(each, str) and _IMPORT_PATH.fullmatch(each):
            found.add(each)
    return found


def import_named_classes(values: Any) -> None:
    """Import the classes of a recipe, which is code, so that a run made from it may name them by any of their paths.

    A class that cannot be imported is left to the code that builds it.
    """
    waiting = [values]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            name = each.get("class_path")
            if isinstance(name, str) and _IMPORT_PATH.fullmatch(name):
                with suppress(ImportError):
                    importlib.import_module(name.rpartition(".")[0])
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)


class _Check:
    """One walk over a configuration."""

    def __init__(self, file: Path, given: frozenset[str]) -> None:
        self.file, self.given, self.count = file, given, 0

    def visit(self, value: Any, place: str, code: bool) -> None:
        """Check a value and all in it; `code` says whether a text here may be taken for an import path."""
        self.count += 1
        if self.count > _MOST_VALUES:
            raise UntrustedClassError(f"{self.file}: {place} unfolds to more than {_MOST_VALUES:,} values")
        if isinstance(value, str):
            self._visit_text(value, place, code)
        elif isinstance(value, Mapping):
            self._visit_mapping(value, place, code)
        elif isinstance(value, list | tuple | set):
            for number, each in enumerate(value):
                self.visit(each, f"{place}.{number}".removeprefix("."), code)

    def _visit_text(self, text: str, place: str, code: bool) -> None:
        if code and _IMPORT_PATH.fullmatch(text.strip()):
            self._require(text.strip(), place)
            return
        # The parser reads texts as YAML where their type lets it: classes may hide in them, even several deep.
        try:
            inner = get_loader("yaml")(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            return
        if inner != text and (isinstance(inner, Mapping | list) or (isinstance(inner, str) and len(inner) < len(text))):
            self.visit(inner, place, code)

    def _visit_mapping(self, value: Mapping[Any, Any], place: str, code: bool) -> None:
        for key in value:
            # Dots in keys are levels to the parser.
            if isinstance(key, str) and "." in key and set(key.split(".")) & set(_SPEC):
                raise UntrustedClassError(
                    f"{self.file}: {place}.{key} names a class by a key with dots; write it as nested mappings"
                )
        if "class_path" not in value:
            for key, each in value.items():
                self.visit(each, f"{place}.{key}".removeprefix("."), code)
            return
        kind = self._named(value["class_path"], place)
        for key, each in value.items():
            if key in {"init_args", "dict_kwargs"} and isinstance(each, Mapping) and "class_path" not in each:
                for name, argument in each.items():
                    self.visit(argument, f"{place}.{name}", kind is None or takes_code(kind, name))
            elif key != "class_path":
                self.visit(each, f"{place}.{key}", True)

    def _named(self, name: Any, place: str) -> type | None:
        """The class that a class_path names; None for a short name, which can only be one of those loaded."""
        if not isinstance(name, str):
            raise UntrustedClassError(f"{self.file}: {place}.class_path={name!r} must be a text")
        if "." not in name:
            return registered(place).get(name) if place in _SECTIONS else None
        found = self._require(name, f"{place}.class_path")
        return found if isinstance(found, type) else None

    def _require(self, name: str, place: str) -> Any:
        found = loaded(name)
        if name not in self.given and not is_trusted(found):
            known = "which no program has imported" if found is None else f"which is not a class that {_kinds()}"
            raise UntrustedClassError(
                f"{self.file}: {place} names {name}, {known}; a run's folder is data, and runs no code. If you trust "
                "it, allow that with trust, or name the recipe that it was made from; in Python, import the class first"
            )
        return found


def _kinds() -> str:
    return "milkweed or Lightning ship, nor a model, task, data module or callback of your own"


def loaded(name: str) -> Any:
    """The object at an import path such as `package.module.Class`; None unless its module is loaded."""
    module, _, short = name.rpartition(".")
    if module not in sys.modules:
        return None
    # Not by getattr: a module's __getattr__ is code too.
    return vars(sys.modules[module]).get(short)


def is_trusted(found: Any) -> bool:
    """Whether a file may have an object built: the head of this module lists the classes."""
    if not isinstance(found, type):
        return False
    if f"{found.__module__}.{found.__qualname__}" in _INTERNAL:
        return False
    return issubclass(found, KINDS) or found.__module__ == "milkweed.train.densify"


def takes_code(kind: type, argument: str) -> bool:
    """Whether a text for a class's argument may be taken for an import path: not if its type is data or missing."""
    for owner in kind.__mro__:
        init = vars(owner).get("__init__")
        if init is None or argument not in inspect.signature(init).parameters:
            continue
        if inspect.signature(init).parameters[argument].annotation is inspect.Parameter.empty:
            return False
        try:
            return not _is_data(typing.get_type_hints(init)[argument])
        except Exception:  # a type that cannot be resolved says nothing
            return True
    return True


def _is_data(hint: Any) -> bool:
    if hint is Any or hint is object or typing.get_origin(hint) is typing.Literal:
        return True
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _is_data(typing.get_args(hint)[0])
    if origin in {typing.Union, types.UnionType}:
        return all(map(_is_data, typing.get_args(hint)))
    if origin is not None:
        parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
        container = isinstance(origin, type) and issubclass(origin, typing.Collection | typing.Iterable)
        return container and all(map(_is_data, parts))
    return isinstance(hint, type) and (issubclass(hint, _DATA) or issubclass(hint, enum.Enum))
