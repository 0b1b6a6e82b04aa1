"""Values of a recipe that the libraries below would refuse in words of their own, or only in mid-training."""

import importlib
import inspect
import re
from dataclasses import fields
from typing import Any

from milkweed.cli.errors import UsageError
from milkweed.cli.options import FIXED, unknown_option
from milkweed.tasks.base import Task
from milkweed.train.densify import DensifyOptions
from milkweed.train.optimisation import Optimisation

# Smallest values of the trainer's options, and what to write instead of a smaller one.
LEAST = {
    "accumulate_grad_batches": (1, "1 steps after every batch"),
    "check_val_every_n_epoch": (1, "--trainer.limit_val_batches 0 leaves validation out"),
    "checkpoint_every_n_steps": (1, "null saves after epochs only"),
    "gradient_clip_val": (0, "null clips nothing"),
    "log_every_n_steps": (0, "null leaves it to Lightning"),
}


def check_names(values: dict[str, Any], classes: dict[str, dict[str, Any]], trainer: list[str]) -> None:
    """Refuse keys of a recipe that are no options, and say which was probably meant.

    Args:
        values: The recipe's content, class names checked.
        classes: The classes that each section may name.
        trainer: The trainer's options.

    Raises:
        UsageError: A key is no option, or one that cannot be set.
    """
    for section, known in classes.items():
        options = options_of(values[section]["class_path"], known)
        given = values[section].get("init_args") or {}
        if not isinstance(given, dict):
            raise UsageError(
                f"{section}.init_args={given!r} must be options by name, e.g. {{{(options or ['x'])[0]}: …}}"
            )
        _check_keys(section, list(given), options)
    _check_keys("trainer", list(values["trainer"]), trainer)


def check_seed(seed: Any) -> None:
    """Refuse a seed that is none, and say how to train with several.

    Args:
        seed: The value.

    Raises:
        UsageError: It is no whole number that all generators take.
    """
    if type(seed) is int and 0 <= seed < 2**32:
        return
    several = re.findall(r"\d+", str(seed)) if isinstance(seed, str | list) else []
    fix = f"; train once for each: for s in {' '.join(several)}; do milkweed train RECIPE --seed $s; done"
    raise UsageError(f"seed={seed!r} does not fit; expected int, from 0 to 4294967295{fix if several[1:] else ''}")


def check_trainer(options: dict[str, Any]) -> None:
    """Refuse numbers that Lightning takes and then divides by, and wrong options of `densify`.

    Args:
        options: The section `trainer`.

    Raises:
        UsageError: A value is out of range, or a key of `densify` is no option.
    """
    for name, (least, instead) in LEAST.items():
        value = options.get(name)
        if isinstance(value, int | float) and not value >= least:
            raise UsageError(f"trainer.{name}={value} must be at least {least}; {instead}")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and not interval > 0:
        raise UsageError(
            f"trainer.val_check_interval={interval} must be above 0: batches between validations, or up to 1.0 a share "
            "of an epoch; null validates after epochs"
        )
    densify = options.get("densify")
    if densify is None:
        return
    if not isinstance(densify, dict):
        raise UsageError(
            f"trainer.densify={densify!r} must be null or options such as {{at: 0.9}}; on the command line "
            "--trainer.densify.at 0.9"
        )
    _check_keys("trainer", [f"densify.{key}" for key in densify], [f"densify.{key}" for key in vars(DensifyOptions())])
    DensifyOptions(**densify)


def check_kind(section: str, name: str, bases: tuple[type, ...]) -> None:
    """Refuse a class of another kind than a section is for, before anything is built.

    Args:
        section: `data`, `model` or `task`.
        name: A short name, or an import path; importing it runs its module, as recipes are code.
        bases: What the class must be one of.

    Raises:
        UsageError: It is a class of another kind.
    """
    kind = import_class(name) if "." in name else None
    if isinstance(kind, type) and not issubclass(kind, bases):
        raise UsageError(
            f"{section}.class_path={name} is no {bases[0].__name__}; make the class a subclass of "
            f"{bases[0].__module__}.{bases[0].__name__}"
        )


def import_class(path: str) -> Any:
    """Import what a class path names.

    Args:
        path: An import path.

    Returns:
        The class; None if it cannot be found, of which jsonargparse says why.
    """
    module, _, short = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), short)
    except (ImportError, AttributeError, ValueError):
        return None


def options_of(name: str, known: dict[str, Any]) -> list[str] | None:
    """List the options of a class.

    Args:
        name: A short name or an import path.
        known: Classes by short name.

    Returns:
        Names of its arguments; None if it takes any, or cannot be found.
    """
    kind = known.get(name) or import_class(name)
    if kind is None:
        return None
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    rates = [field.name for field in fields(Optimisation)] if isinstance(kind, type) and issubclass(kind, Task) else []
    return [parameter.name for parameter in parameters] + rates


def _check_keys(section: str, given: list[str], options: list[str] | None) -> None:
    for key in given:
        name = f"{section}.{key}"
        if name in FIXED:
            raise UsageError(f"--{name} cannot be set: {FIXED[name]}")
        if options is not None and key not in options:
            settable = {f"{section}.{option}": None for option in options if f"{section}.{option}" not in FIXED}
            raise UsageError(unknown_option(name, settable))
