"""The options of a recipe, as a table for people."""

import argparse
import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from milkweed._registry import registered
from milkweed.cli.errors import UsageError
from milkweed.cli.hints import OPTIONS
from milkweed.cli.options import natural_options
from milkweed.cli.recipe import Recipe, find_recipe

SECTION_ORDER = ("seed", "data", "model", "task", "trainer")


def print_options(console: Console, recipe: Recipe) -> None:
    """Print every option of a recipe with its value and meaning.

    Args:
        console: Where to print.
        recipe: The recipe.
    """
    from milkweed.cli.build import resolve, usable_classes

    config = resolve(recipe.values, [])
    meanings = {"seed": "decides initial weights, order of the samples and dropout"}
    rates = documented("milkweed.train.optimisation.Optimisation")
    meanings |= {f"task.{name}": text for name, text in rates.items()}
    for section in ("data", "model", "task"):
        meanings |= {f"{section}.{name}": text for name, text in documented(config[section]["class_path"]).items()}
    meanings |= {f"trainer.{name}": text for name, text in documented("lightning.pytorch.Trainer").items()}
    meanings["trainer.checkpoint_every_n_steps"] = "Save also within epochs, after every so many optimiser steps"
    options, densify = with_densify(natural_options(config))
    layers = layer_options(config)
    for section, names in usable_classes().items():
        options[section] = config[section]["class_path"].rpartition(".")[2]
        meanings[section] = f"One of {', '.join(names)}, or an import path"
    options |= {name: options.get(name, default) for name, (default, _) in layers.items()}
    meanings |= {name: text for name, (_, text) in layers.items()}
    options = dict(sorted(options.items(), key=lambda item: _place(item[0])))
    table = Table.grid(padding=(0, 2))
    # Names fold where a terminal is too narrow for them; rich would cut them.
    table.add_column(overflow="fold", width=min(max(map(len, options)) + 4, console.width // 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in options.items():
        shown = Text("" if value is None else str(value), style="cyan")
        table.add_row(Text(f"  --{name}"), shown, Text((meanings | densify).get(name, "")))
    console.print(f"\noptions of recipe [bold]{escape(recipe.name)}[/], with their values:", highlight=False)
    console.print(table, highlight=False)


def _place(name: str) -> tuple[int, bool]:
    """Where an option stands in the list: sections in the order of recipes, the choice of its class first."""
    section, dot, _ = name.partition(".")
    return SECTION_ORDER.index(section), bool(dot)


def all_options(config: dict[str, Any]) -> list[str]:
    """Names of all options that work with a resolved configuration."""
    return [*with_densify(natural_options(config))[0], *layer_options(config)]


def recipe_options(values: argparse.Namespace) -> Iterable[str]:
    """All options of the recipe that a command was given, to find the one that was meant.

    Args:
        values: The command's own arguments, of which `recipe` may name one.

    Returns:
        Natural names; only the usual ones where there is no such recipe.
    """
    if getattr(values, "recipe", None) is None:
        return set(OPTIONS.values())
    from milkweed.cli.build import resolve

    try:
        return all_options(resolve(find_recipe(values.recipe).values, []))
    except UsageError:
        return set(OPTIONS.values())


def layer_options(config: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Values and meanings of the options of a model's layers, which are plain values by name.

    Args:
        config: A resolved configuration.

    Returns:
        (default, meaning) by natural name, of the layers that the model has; of others only that they can be chosen.
    """
    from milkweed.nn import SequenceLayer
    from milkweed.nn.factory import maker

    found: dict[str, tuple[Any, str]] = {}
    given = config["model"].get("init_args") or {}
    for key in ("layer", "linear"):
        if key not in given:
            continue
        known = registered(key)
        spec = given[key] or {}
        found[f"model.{key}.name"] = (spec.get("name"), f"One of {', '.join(sorted(known))}")
        if spec.get("name") not in known:
            continue
        kind = maker(known[spec["name"]])
        texts = documented_kind(SequenceLayer) | documented_kind(inspect.unwrap(kind))
        sizes = 1 if key == "layer" else 2  # which the model decides
        for option in list(inspect.signature(kind).parameters.values())[sizes:]:
            if option.name not in {"device", "dtype"}:
                default = None if option.default is option.empty else option.default
                found[f"model.{key}.{option.name}"] = (spec.get(option.name, default), texts.get(option.name, ""))
    return found


def with_densify(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """List the options of `trainer.densify` one by one, also where a recipe leaves it off.

    Args:
        options: All options by their natural names.

    Returns:
        The options, and what those of `trainer.densify` mean.
    """
    from milkweed.train.densify import DensifyOptions

    meanings = documented("milkweed.train.densify.DensifyOptions")
    if "trainer.densify" in options:
        options = options | {f"trainer.densify.{name}": value for name, value in asdict(DensifyOptions()).items()}
    off = "Make structured layers dense on the way: off, unless one of the options below is given"
    return options, {"trainer.densify": off} | {f"trainer.densify.{name}": text for name, text in meanings.items()}


def documented(class_path: str) -> dict[str, str]:
    """What a class's docstring says about its arguments.

    Args:
        class_path: Import path of the class.

    Returns:
        The first sentence on each argument, by name.
    """
    module, _, name = class_path.rpartition(".")
    return documented_kind(getattr(importlib.import_module(module), name))


def documented_kind(kind: Any) -> dict[str, str]:
    """What the docstring of a class says about its arguments.

    Args:
        kind: The class.

    Returns:
        The first sentence on each argument, by name.
    """
    from docstring_parser import parse

    text = inspect.getdoc(kind) or ""
    if "Args:" not in text:
        text = inspect.getdoc(kind.__init__) or ""
    found = {item.arg_name: first_sentence(item.description or "") for item in parse(text).params}
    # "Those of [`milkweed.nn.SequenceLayer`][]": what is handed on is described where it arrives.
    for path in re.findall(r"\[`(milkweed\.[\w.]+)`\]\[\]", found.pop("**options", "") and text):
        found = documented(path) | found
    return found


def first_sentence(text: str) -> str:
    """Shorten a description.

    Args:
        text: Any text.

    Returns:
        Its first sentence on one line, without the marks of code and links.
    """
    flat = re.sub(r"\[`([^`]*)`\]\[[^\]]*\]|`+([^`]*)`+", r"\1\2", " ".join(text.split()))
    return flat.partition(". ")[0].rstrip(".")
