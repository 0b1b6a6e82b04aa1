"""The options of a recipe, as a table for people."""

import importlib
import inspect
from typing import Any

from rich.console import Console
from rich.table import Table

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
    for section in ("data", "model", "task"):
        meanings |= {f"{section}.{name}": text for name, text in documented(config[section]["class_path"]).items()}
    meanings |= {f"trainer.{name}": text for name, text in documented("lightning.pytorch.Trainer").items()}
    meanings["trainer.checkpoint_every_n_steps"] = "save also within epochs, after every so many optimiser steps"
    meanings["trainer.densify"] = "make structured layers dense on the way, e.g. --trainer.densify.at 0.9"
    table = Table.grid(padding=(0, 2))
    for name, value in natural_options(config).items():
        table.add_row(f"  --{name}", f"[cyan]{'' if value is None else value}[/]", meanings.get(name, ""))
    console.print(f"\noptions of recipe [bold]{recipe.name}[/], with their values:", highlight=False)
    console.print(table, highlight=False)


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
        Its first sentence on one line.
    """
    flat = " ".join(text.split())
    return flat.partition(". ")[0].rstrip(".")
