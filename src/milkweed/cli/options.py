"""Overrides: every value of a recipe as an option of the command line, under its natural name."""

import copy
import difflib
from typing import Any

from milkweed.cli.errors import UsageError
from milkweed.cli.hints import OPTIONS
from milkweed.cli.recipe import SECTIONS
from milkweed.train.strict_yaml import SEXAGESIMAL

Overrides = list[tuple[str, Any]]


class TypedOverrides(list[tuple[str, Any]]):
    """Overrides that know how they were typed: `texts` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}


FIXED = {
    "model.d_input": "the data decide it",
    "model.d_output": "the data decide it",
    "model.length": "the data decide it",
    "task.num_classes": "the data decide it",
    "task.judged_by": "the data decide it",
    "task.model": "it is the section model",
    "data.seed": "it is --seed",
    "trainer.max_steps": "trainings are bounded by --trainer.max_epochs, and epochs by --trainer.limit_train_batches",
}


def split_overrides(arguments: list[str]) -> tuple[list[str], Overrides]:
    """Separate a recipe's options from the command's own arguments.

    Args:
        arguments: The command line after the command; `--a.b value`, `--a.b=value`, or `--a.b` alone for true.

    Returns:
        The rest, and (name, value) pairs with values read as YAML.
    """
    rest: list[str] = []
    overrides = TypedOverrides()
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not (name == "seed" or name.partition(".")[0] in SECTIONS):
            rest.append(argument)
            continue
        if not equals:
            text = remaining.pop(0) if remaining and not remaining[0].startswith("--") else "true"
        overrides.append((name, read_value(text)))
        overrides.texts[name] = text
    return rest, overrides


def read_value(text: str) -> Any:
    """Read one value as YAML, where `1e-3` is a number.

    Args:
        text: As typed.

    Returns:
        The value; the text itself if it is no YAML.
    """
    from jsonargparse import get_loader
    from yaml import YAMLError

    if SEXAGESIMAL.fullmatch(text):
        return text
    try:
        return get_loader("yaml")(text)
    except YAMLError:
        return text


def natural_options(config: dict[str, Any]) -> dict[str, Any]:
    """All options of a resolved configuration by their natural names, without `init_args`.

    Args:
        config: Nested dictionaries.

    Returns:
        Values by dotted name.
    """
    options: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(value, dict) or not value:
            options[key] = value
            continue
        inner = value.get("init_args") or {} if "class_path" in value else value
        options |= {f"{key}.{name}": item for name, item in natural_options(inner).items()}
    return options


def apply_overrides(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Change values of a resolved configuration.

    Args:
        config: Nested dictionaries, every option present.
        overrides: (natural name, value) pairs.

    Returns:
        A changed copy.

    Raises:
        UsageError: If a name is no option.
    """
    changed = copy.deepcopy(config)
    for name, value in overrides:
        known = natural_options(changed)
        if name in FIXED:
            raise UsageError(f"--{name} cannot be set: {FIXED[name]}")
        place = _place_of(changed, name.split("."))
        if place is None:
            raise UsageError(unknown_option(name, known))
        place[name.rpartition(".")[2]] = value
    return changed


def _place_of(config: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """The dictionary that holds the last key of a path; None if there is no such option."""
    place = config
    free = False
    for depth, key in enumerate(path):
        if "class_path" in place:
            place = place["init_args"]
        # Options of options, such as those of a layer, are checked by what is built from them.
        if key not in place and not free:
            return None
        if depth == len(path) - 1:
            return place
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            return None
        free = depth > 0 and "class_path" not in place
    return None


def unknown_option(name: str, known: dict[str, Any]) -> str:
    """Say which option was probably meant.

    Args:
        name: As typed, without dashes.
        known: All options.

    Returns:
        For example `unknown option --model.d_modle; did you mean --model.d_model?`.
    """
    section, _, rest = name.partition(".")
    meant = OPTIONS.get(rest)
    if meant not in known:
        meant = next((key for key in known if key.endswith(f".{rest}") and "." in name), None)
    if meant in known:
        return f"unknown option --{name}; did you mean --{meant}?"
    # Compared without the section, which would make everything in it look alike.
    names = [key.removeprefix(f"{section}.") for key in known if key.startswith(f"{section}.")]
    near = difflib.get_close_matches(rest, names, n=1, cutoff=0.5)
    if near:
        return f"unknown option --{name}; did you mean --{section}.{near[0]}?"
    return f"unknown option --{name}; {section} has {', '.join(names)}"
