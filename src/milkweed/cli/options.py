"""Overrides: every value of a recipe as an option of the command line, under its natural name."""

import copy
from typing import Any

from milkweed._suggest import UsageError
from milkweed.train.recipe.words import FIXED, SECTIONS, natural_options, unknown_option

Overrides = list[tuple[str, Any]]


class TypedOverrides(list[tuple[str, Any]]):
    """(name, value) pairs that know how they were typed: `texts` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}


def split_overrides(arguments: list[str]) -> tuple[list[str], TypedOverrides]:
    """Take a recipe's options out of a command line: `--a.b value`, `--a.b=value`, or `--a.b` alone for true."""
    from milkweed.train.strict_yaml import read_value

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


def apply_overrides(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of a resolved configuration with some values changed, given by natural name."""
    changed = copy.deepcopy(config)
    for name, value in overrides:
        if name in FIXED:
            raise UsageError(f"--{name} cannot be set: {FIXED[name]}")
        place = _place_of(changed, name.split("."))
        if place is None:
            raise UsageError(unknown_option(name, natural_options(changed)))
        place[name.rpartition(".")[2]] = value
    return changed


def _place_of(config: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """The dictionary that holds the last key of a path; None if there is no such option."""
    place, free = config, False
    for depth, key in enumerate(path):
        if "class_path" in place:
            place = place["init_args"]
        if key not in place and not free:
            return None
        if depth == len(path) - 1:
            return place
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            return None
        free = depth > 0 and "class_path" not in place  # options of options, such as those of a layer
    return None
