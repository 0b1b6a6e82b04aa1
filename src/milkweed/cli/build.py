"""From a recipe's values to checked values, and from those to objects."""

import copy
import functools
import inspect
import operator
import types
import typing
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer

from milkweed import data, models, tasks
from milkweed._registry import registered
from milkweed._seeding import seed_generators
from milkweed._suggest import unknown
from milkweed.cli.check import check_kind, check_names, check_seed, check_trainer, import_class
from milkweed.cli.errors import UsageError, readable_type_error
from milkweed.cli.options import Overrides, apply_overrides
from milkweed.tasks.base import Task
from milkweed.train.densify import DensifyOptions
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation
from milkweed.train.run_config import WAY_OUT, StoredConfig, check_complete

SECTION_KEYS = ("class_path", "init_args", "dict_kwargs")
BASES = {"data": data.SequenceData, "model": models.Model, "task": Task}
OPTIMISATION = tuple(field.name for field in fields(Optimisation))

# Set by this library, or of no use in a training that is recorded.
MANAGED = {
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
    """What a recipe describes.

    Attributes:
        data: The data module.
        module: The LightningModule around model and task.
        trainer_options: Keyword arguments of the Trainer.
        seed: The run's seed.
    """

    data: data.SequenceData
    module: LightningModule
    trainer_options: dict[str, Any]
    seed: int


def make_parser(task: type = Task) -> ArgumentParser:
    """The parser that knows the types of all options.

    Args:
        task: What the task is: a `Task`, or a LightningModule of the user's own that does all by itself.

    Returns:
        A jsonargparse parser whose data, model and task are linked.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=int, default=0)
    for section, base in (BASES | {"task": task}).items():
        parser.add_argument(f"--{section}", type=base, required=True)
    if task is Task:
        parser.add_argument("--optimisation", type=Optimisation)
    else:
        parser.link_arguments("model", "task.init_args.model", apply_on="instantiate")
    for option in inspect.signature(Trainer.__init__).parameters.values():
        if option.name not in MANAGED | {"self"}:
            parser.add_argument(f"--trainer.{option.name}", type=exact(option.annotation), default=option.default)
    parser.add_argument("--trainer.checkpoint_every_n_steps", type=int | None, default=None)
    parser.add_argument("--trainer.densify", type=DensifyOptions | None, default=None)
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.link_arguments("seed", "data.init_args.seed")
    for source in ("d_input", "d_output", "length", "vocabulary"):
        parser.link_arguments(f"data.{source}", f"model.init_args.{source}", apply_on="instantiate")
    parser.link_arguments("data.d_output", "task.init_args.num_classes", apply_on="instantiate")
    parser.link_arguments("data.judged_by", "task.init_args.judged_by", apply_on="instantiate")
    return parser


def exact(hint: Any) -> Any:
    """Let whole numbers be tried before fractions, and truth before both: 1 of something is not all of it.

    `Optional[Union[int, float]]` may come as `Union[float, int, None]`: typing takes the two for equal, and gives
    whichever was made first in the process. The parser tries the parts in their order, and makes 1.0 of 1.

    Args:
        hint: The type of an option.

    Returns:
        The same type.
    """
    parts = typing.get_args(hint)
    if typing.get_origin(hint) not in {typing.Union, types.UnionType} or not {int, float} <= set(parts):
        return hint
    order = [bool, int, float]
    parts = sorted(parts, key=lambda part: order.index(part) if part in order else len(order))
    return functools.reduce(operator.or_, parts)  # which typing does not cache


def parse(values: dict[str, Any]) -> tuple[ArgumentParser, Namespace]:
    """Check all types; options of the optimisation, which stand among the task's, are parsed on their own.

    Args:
        values: Nested dictionaries.

    Returns:
        The parser, and what it made of the values.
    """
    kind = class_of("task", values["task"]["class_path"])
    if kind is not None and issubclass(kind, LightningModule):
        parser = make_parser(LightningModule)
    else:
        parser = make_parser()
        given = values["task"].get("init_args") or {}
        own = {name: value for name, value in given.items() if name not in OPTIMISATION}
        rates = {name: value for name, value in given.items() if name in OPTIMISATION}
        usual = dict(getattr(kind, "optimisation", {}))
        values = values | {"task": values["task"] | {"init_args": own}, "optimisation": usual | rates}
    # A copy, as the parser fills in the defaults of classes in lists where they stand.
    return parser, parser.parse_object(copy.deepcopy(values))


def class_of(section: str, name: Any) -> type | None:
    """Find the class of a short name or an import path.

    Args:
        section: `data`, `model` or `task`.
        name: The value of its `class_path`.

    Returns:
        The class; None if there is none.
    """
    found = classes().get(section, {}).get(name) or (import_class(name) if isinstance(name, str) else None)
    return found if isinstance(found, type) else None


def resolve(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Complete a recipe by all defaults, change it, and check every type.

    Args:
        values: The recipe's content, or a run's config.yaml.
        overrides: (natural name, value) pairs.

    Returns:
        The resolved configuration, as nested dictionaries.

    Raises:
        UsageError: If a key is no option, or a value out of its range.
        ValueError: If a config.yaml is incomplete.
    """
    classes = [(name.removesuffix(".class_path"), value) for name, value in overrides if names_class(name)]
    others = [(name, value) for name, value in overrides if not names_class(name)]
    with blamed_on(values):
        config = complete(values | {name: {"class_path": value, "init_args": {}} for name, value in classes})
        if isinstance(values, StoredConfig):
            check_complete(values, config, [name for name, _ in (*classes, *others)])
    texts = getattr(overrides, "texts", {})
    others = [(name, as_text(config, name, value, texts.get(name, value))) for name, value in others]
    changed = apply_overrides(config, others)
    check_seed(changed["seed"])
    check_trainer(changed["trainer"])
    return as_plain(*parse(changed))


def classes() -> dict[str, dict[str, type]]:
    """The classes that short names stand for; anything else is an import path.

    Returns:
        For each section, classes by name.
    """
    rooms = {"data": data, "task": tasks}
    found = {section: {name: getattr(room, name) for name in room.__all__} for section, room in rooms.items()}
    return found | {"model": registered("model")}


def as_text(config: dict[str, Any], name: str, value: Any, text: Any) -> Any:
    """Leave a value as it was typed where its option takes a text and nothing else that the value could be.

    Args:
        config: A resolved configuration.
        name: The option's natural name.
        value: What YAML makes of the text: a folder `2024` a number, a file `no` false.
        text: As typed.

    Returns:
        Value or text.
    """
    section, _, option = name.partition(".")
    if section == "seed":
        return value
    owner = Trainer if section == "trainer" else class_of(section, config.get(section, {}).get("class_path"))
    if value is None or isinstance(value, str) or owner is None:
        return value
    try:
        hint = typing.get_type_hints(owner.__init__).get(option)
    except Exception:  # a type of the user's that cannot be resolved
        return value
    kinds = {typing.get_origin(part) or part for part in typing.get_args(hint) or (hint,)}
    return text if str in kinds and type(value) not in kinds and typing.Literal not in kinds else value


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Check a recipe and fill in all defaults.

    Args:
        values: The recipe's content.

    Returns:
        Nested dictionaries.

    Raises:
        UsageError: If a key is no option, or a value out of its range.
    """
    # A copy, as the parser fills in the defaults of classes in lists where they stand.
    values = copy.deepcopy(values)
    name = values["model"].get("class_path")
    model = registered("model").get(name) if isinstance(name, str) else None
    if model is not None:  # whose name may be another than the class's, which the parser looks for
        values["model"]["class_path"] = f"{model.__module__}.{model.__qualname__}"
    for section, base in BASES.items():
        for key in values[section]:
            if key not in SECTION_KEYS:
                raise UsageError(unknown(f"{section}'s key", key, SECTION_KEYS))
        name = values[section].get("class_path")
        check_class_name(section, name)
        check_kind(section, name, (Task, LightningModule) if section == "task" else (base,))
    check_names(values, classes(), list(vars(make_parser().get_defaults().trainer)))
    check_trainer(values["trainer"])
    return as_plain(*parse(values))


@contextmanager
def blamed_on(values: dict[str, Any]) -> Iterator[None]:
    """Say that an error may come from a file that is not known to be whole.

    Args:
        values: What the block reads.

    Yields:
        Nothing.

    Raises:
        ValueError: The block met an error in a config.yaml that has no checksum.
        TypeError: It met one in anything else; as the others.
        ArgumentError: As raised by the parser.
    """
    try:
        yield
    except (ValueError, TypeError, ArgumentError) as error:
        if not isinstance(values, StoredConfig) or values.whole or str(values.path) in str(error):
            raise
        text = readable_type_error(str(error)) or str(error)
        raise ValueError(f"{values.path} does not fit ({text}), and may be damaged; {WAY_OUT}") from error


def check_class_name(section: str, name: Any) -> None:
    """Refuse a misspelled short class name.

    Args:
        section: `data`, `model` or `task`.
        name: The value of its `class_path`.

    Raises:
        UsageError: If it is neither one of this library's classes nor an import path.
    """
    usable = usable_classes()[section]
    if not isinstance(name, str) or ("." not in name and name not in usable):
        hint = unknown(f"{section}.class_path", name, usable)
        raise UsageError(f"{hint}; an import path such as package.module.Class will do too")


def usable_classes() -> dict[str, list[str]]:
    """The short class names that may stand in each section."""
    return {
        section: [
            key
            for key, kind in known.items()
            if isinstance(kind, type) and kind is not BASES[section] and not inspect.isabstract(kind)
        ]
        for section, known in classes().items()
    }


def names_class(name: str) -> bool:
    """Whether an option chooses a class, e.g. `--model MlpMixer`.

    Args:
        name: As typed, without dashes.

    Returns:
        True for a section's own name or its class_path.
    """
    return name.removesuffix(".class_path") in {"data", "model", "task"}


def as_plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Turn parsed values into nested dictionaries that parse again.

    Args:
        parser: The parser that made them.
        config: A jsonargparse namespace.

    Returns:
        Nested dictionaries without linked values.
    """
    plain = yaml.safe_load(parser.dump(config, skip_unset=False, skip_link_targets=True))
    if "optimisation" in plain:
        plain["task"]["init_args"] = (plain["task"].get("init_args") or {}) | plain.pop("optimisation")
    return plain


def build(config: dict[str, Any]) -> Build:
    """Make the objects, the model's parameters drawn from the seed.

    Args:
        config: A resolved configuration.

    Returns:
        The parts of a training.
    """
    parser, parsed = parse(config)
    seed_generators(parsed.seed)
    made = parser.instantiate(parsed)
    whole = isinstance(made.task, LightningModule)
    module = made.task if whole else SequenceModule(made.model, made.task, made.optimisation)
    return Build(made.data, module, made.trainer.as_dict(), parsed.seed)
