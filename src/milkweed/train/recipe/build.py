"""From a recipe's checked values to objects: which class each section names, and what jsonargparse makes of it."""

import functools
import importlib
import inspect
import json
import operator
import types
import typing
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from milkweed import data, models
from milkweed._registry import registered
from milkweed._seeding import seed_generators
from milkweed.tasks.base import Task
from milkweed.train.densify import DensifyOptions
from milkweed.train.loggers import LoggerName
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation
from milkweed.train.strict_yaml import plain

BASES: dict[str, type] = {"data": data.SequenceData, "model": models.Model, "task": Task}
OPTIMISATION = tuple(field.name for field in fields(Optimisation))

# Set by this library, or of no use in a training that is recorded.
MANAGED = {
    "self",
    "default_root_dir",
    "plugins",
    "enable_checkpointing",
    "enable_model_summary",
    "use_distributed_sampler",
    "reload_dataloaders_every_n_epochs",
    "fast_dev_run",
    "barebones",
    "inference_mode",
    "model_registry",
    "enable_autolog_hparams",
    # Lightning repeats the end of an epoch when it resumes a training that is bounded by steps.
    "max_steps",
    "min_steps",
    # Lightning replaces the sampler for it, and with it the batches.
    "overfit_batches",
}
TRAINER_DEFAULTS = {"devices": 1, "num_sanity_val_steps": 0, "logger": False, "max_epochs": 10}


@dataclass(frozen=True)
class Build:
    """What a recipe describes: data, the LightningModule around model and task, the Trainer's options, the seed."""

    data: data.SequenceData
    module: LightningModule
    trainer_options: dict[str, Any]
    seed: int


def class_of(section: str, name: Any) -> type | None:
    """The class of a short name or an import path, whose module is imported; None if there is none."""
    kind = registered(section).get(name) if isinstance(name, str) else None
    module, dot, short = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if kind is None and dot:
        try:
            kind = getattr(importlib.import_module(module), short)
        except (ImportError, AttributeError, ValueError):  # jsonargparse says why
            return None
    return kind if isinstance(kind, type) else None


def trainer_options() -> dict[str, tuple[Any, Any]]:
    """(type, default) of each option of the section `trainer`."""
    found: dict[str, tuple[Any, Any]] = {
        option.name: (exact(option.annotation), TRAINER_DEFAULTS.get(option.name, option.default))
        for option in inspect.signature(Trainer.__init__).parameters.values()
        if option.name not in MANAGED
    }
    logger = found["logger"]
    found["logger"] = (LoggerName | list[LoggerName | Logger] | logger[0], logger[1])
    return found | {"checkpoint_every_n_steps": (int | None, None), "densify": (DensifyOptions | None, None)}


def exact(hint: Any) -> Any:
    """Let whole numbers be tried before fractions, and truth before both: 1 of something is not all of it."""
    # `Optional[Union[int, float]]` may come as `Union[float, int, None]`: typing takes the two for equal, and gives
    # whichever was made first in the process. The parser tries the parts in their order, and makes 1.0 of 1.
    parts = typing.get_args(hint)
    if typing.get_origin(hint) not in {typing.Union, types.UnionType} or not {int, float} <= set(parts):
        return hint
    order = [bool, int, float]
    parts = sorted(parts, key=lambda part: order.index(part) if part in order else len(order))
    return functools.reduce(operator.or_, parts)  # which typing does not cache


def make_parser(task: type) -> ArgumentParser:
    """A jsonargparse parser that knows all types and links data, model and task (or a LightningModule)."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    for section, base in (BASES | {"task": task}).items():
        parser.add_argument(f"--{section}", type=base, required=True)
    if task is Task:
        parser.add_argument("--optimisation", type=Optimisation)
    else:
        parser.link_arguments("model", "task.init_args.model", apply_on="instantiate")
    for name, (hint, default) in trainer_options().items():
        parser.add_argument(f"--trainer.{name}", type=hint, default=default)
    parser.link_arguments("seed", "data.init_args.seed")
    for source in ("d_input", "d_output", "length", "horizon", "vocabulary"):
        parser.link_arguments(f"data.{source}", f"model.init_args.{source}", apply_on="instantiate")
    parser.link_arguments("data.d_output", "task.init_args.num_classes", apply_on="instantiate")
    parser.link_arguments("data.units", "task.init_args.units", apply_on="instantiate")
    parser.link_arguments("data.judged_by", "task.init_args.judged_by", apply_on="instantiate")
    return parser


def parse(values: dict[str, Any]) -> tuple[ArgumentParser, Namespace]:
    """Check all types; options of the optimisation, which stand among the task's, are parsed on their own."""
    kind = class_of("task", values["task"]["class_path"])
    if kind is not None and issubclass(kind, LightningModule):
        parser = make_parser(LightningModule)
    else:
        parser = make_parser(Task)
        given = values["task"].get("init_args") or {}
        own = {name: value for name, value in given.items() if name not in OPTIMISATION}
        rates = {name: value for name, value in given.items() if name in OPTIMISATION}
        usual = dict(getattr(kind, "optimisation", {}))
        values = values | {"task": values["task"] | {"init_args": own}, "optimisation": usual | rates}
    # A copy, as the parser fills in the defaults of classes in lists where they stand.
    parsed = parser.parse_object(plain(values))
    for section in BASES:
        given = values[section].get("init_args") or {}
        for name in free_options(class_of(section, values[section]["class_path"])) & given.keys():
            parsed[section].init_args[name] = plain(given[name])  # where the parser reads texts as YAML
    return parser, parsed


def free_options(kind: type | None) -> set[str]:
    """Names of a class's options that are mappings to anything."""
    try:
        hints = typing.get_type_hints(getattr(kind, "__init__", None) or object)
    except Exception:  # a type that cannot be resolved, of a user's class
        return set()
    parts = {name: typing.get_args(hint) for name, hint in hints.items()}
    return {
        name for name, found in parts.items() if any(Any in typing.get_args(each) for each in (*found, hints[name]))
    }


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Check all types and fill in all defaults: plain dictionaries, which parse again, without linked values."""
    parser, parsed = parse(values)
    config = json.loads(parser.dump(parsed, format="json", skip_unset=False, skip_link_targets=True))
    config = _with_texts(config, parsed)
    if "optimisation" in config:
        config["task"]["init_args"] = (config["task"].get("init_args") or {}) | config.pop("optimisation")
    return config


def _with_texts(dumped: Any, parsed: Any) -> Any:
    """What the parser dumped, with texts such as "1e3" as they are: it writes them as the numbers they look like."""
    if isinstance(dumped, dict) and isinstance(parsed, dict | Namespace):
        known = parsed if isinstance(parsed, dict) else vars(parsed)
        return {key: _with_texts(value, known.get(key)) for key, value in dumped.items()}
    if isinstance(dumped, list) and isinstance(parsed, list | tuple) and len(dumped) == len(parsed):
        return [_with_texts(*each) for each in zip(dumped, parsed, strict=True)]
    return str(parsed) if isinstance(parsed, str | PurePath) else dumped


def build(config: dict[str, Any]) -> Build:
    """Make the objects of a resolved configuration, the model's parameters drawn from the seed."""
    parser, parsed = parse(config)
    seed_generators(parsed.seed)
    made = parser.instantiate(parsed)
    whole = isinstance(made.task, LightningModule)
    module = made.task if whole else SequenceModule(made.model, made.task, made.optimisation)
    return Build(made.data, module, made.trainer.as_dict(), parsed.seed)
