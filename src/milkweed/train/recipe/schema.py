"""What options a configuration has, each with its type, default and meaning, as the signatures of its classes say."""

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from milkweed._registry import registered
from milkweed.tasks.base import Task
from milkweed.train.densify import DensifyOptions
from milkweed.train.optimisation import Optimisation
from milkweed.train.recipe.build import class_of, trainer_options
from milkweed.train.recipe.docs import entries, first_sentence
from milkweed.train.recipe.words import FIXED, spec_kind

_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
_NAMES = {"Any": Any, "Mapping": Mapping, "Sequence": Sequence, "Literal": typing.Literal}


@dataclass(frozen=True)
class Option:
    """Type, default (`inspect.Parameter.empty` if there is none) and meaning of an option."""

    hint: Any
    default: Any = inspect.Parameter.empty
    meaning: str = ""


class Schema(dict[str, Option]):
    """Options by natural name; `free` are the sections whose class takes any, or cannot be found."""

    def __init__(self) -> None:
        super().__init__()
        self.free: set[str] = set()

    def listed(self) -> list[str]:
        """Names of all but layers, whose own options are listed one by one."""
        return [name for name in self if f"{name}.name" not in self]

    def inner(self, name: str) -> dict[str, Option]:
        """The options within an option, such as those of a layer."""
        return {key: option for key, option in self.items() if key.startswith(f"{name}.")}


def options_of(config: dict[str, Any]) -> Schema:
    """All options of a configuration that names its classes, in the order of recipes."""
    found = Schema()
    found["seed"] = Option(int, 0, "Decides initial weights, order of the samples and dropout")
    for section in ("data", "model", "task"):
        kind, name = class_of(section, config[section].get("class_path")), config[section].get("class_path")
        known = ", ".join(registered(section))
        found[section] = Option(str, str(name).rpartition(".")[2], f"One of {known}, or an import path")
        options = _options(kind)
        if isinstance(kind, type) and issubclass(kind, Task):
            options |= {each.name: Option(each.type, each.default) for each in fields(Optimisation)}
        texts = (documented(Optimisation) if section == "task" else {}) | documented(kind)
        for key, option in options.items():
            if f"{section}.{key}" not in FIXED:
                found[f"{section}.{key}"] = Option(option.hint, option.default, texts.get(key, ""))
        if kind is None or any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind).parameters.values()):
            found.free.add(section)
        for key, option in options.items():
            of_layer = spec_kind(key)
            if of_layer is None or not _takes_mapping(option.hint):
                continue
            spec = (config[section].get("init_args") or {}).get(key) or {}
            found |= _layer_options(f"{section}.{key}", of_layer, spec if isinstance(spec, dict) else {})
    texts = documented(importlib.import_module("lightning.pytorch").Trainer) | {
        "checkpoint_every_n_steps": "Save also within epochs, after every so many optimiser steps",
        "densify": "Make structured layers dense on the way: off, unless one of the options below is given",
    }
    for key, (hint, default) in trainer_options().items():
        found[f"trainer.{key}"] = Option(hint, default, texts.get(key, ""))
    for each in fields(DensifyOptions):
        found[f"trainer.densify.{each.name}"] = Option(each.type, each.default, documented(DensifyOptions)[each.name])
    return found


def _takes_mapping(hint: Any) -> bool:
    origins = [typing.get_origin(part) or part for part in kinds(hint)]
    return any(each is Any or (isinstance(each, type) and issubclass(each, Mapping)) for each in origins)


def _layer_options(name: str, kind: str, spec: dict[str, Any]) -> dict[str, Option]:
    """The options of a layer, by the signature of the registered class."""
    from milkweed.nn import SequenceLayer
    from milkweed.nn.factory import maker

    known = registered(kind)
    found = {f"{name}.name": Option(str, None, f"One of {', '.join(sorted(known))}")}
    if not isinstance(spec.get("name"), str) or spec["name"] not in known:
        return found
    make = maker(known[spec["name"]])
    texts = documented(SequenceLayer) | documented(inspect.unwrap(make))
    decided = {"device", "dtype", *list(inspect.signature(make).parameters)[: 1 if kind == "layer" else 2]}
    options = {key: option for key, option in _options(make).items() if key not in decided}
    return found | {
        f"{name}.{key}": Option(each.hint, each.default, texts.get(key, "")) for key, each in options.items()
    }


def _options(kind: Any) -> dict[str, Option]:
    """Type and default of each argument."""
    if kind is None:
        return {}
    try:
        hints = typing.get_type_hints(kind.__init__ if isinstance(kind, type) else kind)
    except Exception:  # a type that cannot be resolved, of a user's class
        hints = {}
    names = vars(importlib.import_module(inspect.unwrap(kind).__module__)) | _NAMES
    return {
        each.name: Option(hints.get(each.name, _hint(each, names)), each.default)
        for each in inspect.signature(kind).parameters.values()
        if each.kind not in _VARIADIC
    }


def _hint(parameter: inspect.Parameter, names: dict[str, Any]) -> Any:
    hint, default = parameter.annotation, parameter.default
    if isinstance(hint, str):
        try:
            return typing.get_type_hints(types.SimpleNamespace(__annotations__={"hint": hint}), names)["hint"]
        except Exception:
            return Any
    if hint is not parameter.empty:
        return hint
    return type(default) if isinstance(default, bool | int | float | str) else Any


@functools.cache
def documented(kind: Any) -> dict[str, str]:
    """The first sentence of a class's docstring on each argument."""
    if kind is None:
        return {}
    text = inspect.getdoc(kind) or ""
    if "Args:" not in text and isinstance(kind, type):
        text = inspect.getdoc(kind.__init__) or ""
    found = {each.name: first_sentence(each.text) for each in entries(text) if each.section == "Args"}
    # "Those of [`milkweed.nn.SequenceLayer`][]": what is handed on is described where it arrives.
    for path in re.findall(r"\[`(milkweed\.[\w.]+)`\]\[\]", found.pop("options", "") and text):
        module, _, name = path.rpartition(".")
        found = documented(getattr(importlib.import_module(module), name)) | found
    return found


def kinds(hint: Any) -> list[Any]:
    """The parts of a type, any of which will do."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return [part for each in typing.get_args(hint) for part in kinds(each)]
    return [hint]


def in_words(hint: Any) -> str:
    """A type as people say it, such as `int or null`."""
    return " or ".join(dict.fromkeys(map(_in_words, kinds(hint))))


def _in_words(kind: Any) -> str:
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(map(repr, parts))
    if kind in {None, type(None)}:
        return "null"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(origin, type) and issubclass(origin, typing.Iterable) and origin is not str:
        return f"list of {in_words(parts[0])}" if parts else "list"
    return {Any: "anything"}.get(kind, getattr(kind, "__name__", str(kind)))
