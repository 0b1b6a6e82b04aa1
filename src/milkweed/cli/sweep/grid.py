"""The combinations of a sweep: read from the command line, named, and checked before anything starts."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from milkweed._suggest import UsageError
from milkweed.cli.build import resolve
from milkweed.cli.errors import describe
from milkweed.cli.options import TypedOverrides
from milkweed.cli.recipe import Recipe
from milkweed.train.recipe.build import build
from milkweed.train.recipe.schema import options_of
from milkweed.train.recipe.words import OPTIONS, meant_option, unknown_option
from milkweed.train.strict_yaml import read_yaml

LONGEST_NAME = 150
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Choice:
    """One value of an option, and the text that stands for it on a command line."""

    option: str
    value: Any
    text: str
    typed: str  # the option as it was typed, e.g. lr


@dataclass(frozen=True)
class Combination:
    """One run of a sweep."""

    name: str
    choices: tuple[Choice, ...]
    seed: int
    config: dict[str, Any] = field(repr=False)

    @property
    def arguments(self) -> list[str]:
        """Its options as they are typed."""
        return [*(f"--{each.option}={each.text}" for each in self.choices), f"--seed={self.seed}"]


def read_grid(texts: Iterable[str], known: Iterable[str]) -> list[list[Choice]]:
    """Read `--grid OPTION=VALUE,VALUE,…` into the values of each option; short names such as lr will do."""
    found: dict[str, list[Choice]] = {}
    known = list(known)
    for text in texts:
        name, equals, values = text.removeprefix("--").partition("=")
        if not equals or not values.strip():
            raise UsageError(f"--grid {text} must be OPTION=VALUE,VALUE,…; e.g. --grid model.layer.init=legs,inv,lin")
        option = _option(name, known, text)
        if option in found:
            raise UsageError(f"--grid {text}: {option} has its values already; give them all in one --grid")
        found[option] = _values(option, name, values)
    return list(found.values())


def _option(name: str, known: list[str], text: str) -> str:
    if name in {"seed", "seeds"}:
        raise UsageError(f"--grid {text}: seeds are asked for by --seeds 3, or --seeds 0,5,7")
    meant = OPTIONS.get(name.replace("-", "_"))
    ends = [each for each in known if each.endswith(f".{name}")]
    if name in known:
        return name
    if meant in known:
        return meant
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"--grid {text}: {name} may be {' or '.join(ends)}; write it in full")
    if "." in name:
        raise UsageError(f"--grid {text}: {unknown_option(name, known)}")
    near = meant_option(name, [], known)
    raise UsageError(f"--grid {text}: there is no option {name}{f'; did you mean {near[2:]}?' if near else ''}")


def _values(option: str, typed: str, values: str) -> list[Choice]:
    try:
        read = read_yaml(f"[{values}]")
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise UsageError(
            f"--grid {typed}={values} cannot be read: {problem}; put texts with commas or brackets into quotes"
        ) from error
    texts = [read.texts.get(place, json.dumps(value)) for place, value in enumerate(read)]
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise UsageError(f"--grid {typed}={values} has {twice[0]} twice")
    return [Choice(option, value, text, typed) for value, text in zip(read, texts, strict=True)]


def read_seeds(text: str, first: int) -> list[int]:
    """Read `3`, so many seeds from the first, or `0,5,7`, these."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(f"--seeds {text} must be a number of seeds, e.g. 3, or the seeds, e.g. 0,5,7")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        if not 0 < numbers[0] <= MOST_RUNS:
            raise UsageError(f"--seeds {text} must be at least 1; for the seed {text} alone use --seed {text}")
        return list(range(first, first + numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--seeds {text} has a seed twice")
    return numbers


def combinations(
    recipe: Recipe, overrides: TypedOverrides, grid: list[str], seeds: str, *, without_data: bool = False
) -> list[Combination]:
    """All runs of a sweep, each with its resolved configuration; what does not fit is refused here.

    ``without_data`` takes what can only be told where the data are: the runs will be on another machine.
    """
    config = resolve(recipe.values, overrides)
    choices = read_grid(grid, options_of(config))
    numbers = read_seeds(seeds, config["seed"])
    if len(numbers) * len(list(itertools.product(*choices))) > MOST_RUNS:
        raise UsageError(f"--grid and --seeds ask for more than {MOST_RUNS:,} runs")
    titles = short_names([each[0].option for each in choices])
    found = []
    for chosen in itertools.product(*choices):
        config = _checked(recipe, overrides, chosen, without_data)
        for seed in numbers:
            named = [f"{title}={each.text}" for title, each in zip(titles, chosen, strict=True)]
            name = file_name(",".join([*named, f"seed={seed}"]))
            found.append(Combination(name, chosen, seed, config | {"seed": seed}))
    return found


def _checked(
    recipe: Recipe, overrides: TypedOverrides, chosen: tuple[Choice, ...], without_data: bool
) -> dict[str, Any]:
    """The configuration of a combination; an error names the value that is to blame as it was typed."""
    together = TypedOverrides()
    together += [*overrides, *((each.option, each.value) for each in chosen)]
    together.texts = overrides.texts | {each.option: each.text for each in chosen}
    try:
        config = resolve(recipe.values, together)
        _check_buildable(config, without_data)
    except (ValueError, TypeError, OSError) as error:
        for each in chosen if len(chosen) > 1 else ():
            _checked(recipe, overrides, (each,), without_data)  # says so if this value alone does not fit
        flags = " ".join(f"--grid {each.typed}={each.text}" for each in chosen)
        raise UsageError(f"{flags}: {describe(error)}" if flags else describe(error)) from error
    return config


def _check_buildable(config: dict[str, Any], without_data: bool) -> None:
    """Let classes refuse what only they can judge, without allocating anything."""
    try:
        with torch.device("meta"):
            build(config)
    except OSError:
        if not without_data:
            raise
    except RuntimeError as error:
        if "meta" not in str(error):  # a layer of the user's may need values
            raise


def short_names(options: list[str]) -> list[str]:
    """The ends of options' names, where they are enough to tell them apart."""
    ends = [option.rpartition(".")[2] for option in options]
    return [
        end if ends.count(end) == 1 and end != "name" else option.partition(".")[2] or option
        for end, option in zip(ends, options, strict=True)
    ]


def file_name(text: str) -> str:
    """A name for a folder; what was changed to make it one is told apart by a digest."""
    name = re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII)
    if name == text and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    head, _, seed = name.rpartition(",seed=")
    return f"{head[: LONGEST_NAME - 30]}-{digest},seed={seed}" if head else f"{name[: LONGEST_NAME - 30]}-{digest}"
