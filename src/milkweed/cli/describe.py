"""The options of a recipe, as a table for people."""

import importlib
import inspect
import re
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from milkweed.cli.options import natural_options
from milkweed.cli.recipe import Recipe


def print_options(console: Console, recipe: Recipe) -> None:
    """Print every option of a recipe with its value and meaning.

    Args:
        console: Where to print.
        recipe: The recipe.
    """
    from milkweed.cli.build import resolve

    config = resolve(recipe.values, [])
    meanings = {"seed": "decides initial weights, order of the samples and dropout"}
    rates = documented("milkweed.train.optimisation.Optimisation")
    meanings |= {f"task.{name}": text for name, text in rates.items()}
    for section in ("data", "model", "task"):
        meanings |= {f"{section}.{name}": text for name, text in documented(config[section]["class_path"]).items()}
    meanings |= {f"trainer.{name}": text for name, text in documented("lightning.pytorch.Trainer").items()}
    meanings["trainer.checkpoint_every_n_steps"] = "Save also within epochs, after every so many optimiser steps"
    options, densify = with_densify(natural_options(config))
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
    from docstring_parser import parse

    module, _, name = class_path.rpartition(".")
    kind: Any = getattr(importlib.import_module(module), name)
    text = inspect.getdoc(kind) or ""
    if "Args:" not in text:
        text = inspect.getdoc(kind.__init__) or ""
    return {item.arg_name: first_sentence(item.description or "") for item in parse(text).params}


def first_sentence(text: str) -> str:
    """Shorten a description.

    Args:
        text: Any text.

    Returns:
        Its first sentence on one line, without the marks of code and links.
    """
    flat = re.sub(r"\[`([^`]*)`\]\[[^\]]*\]|`+([^`]*)`+", r"\1\2", " ".join(text.split()))
    return flat.partition(". ")[0].rstrip(".")
