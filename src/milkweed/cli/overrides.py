"""Overrides: every value of a recipe as an option of the command line, under its natural name."""

from typing import Any

from milkweed.train.recipe.find import SECTIONS

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
