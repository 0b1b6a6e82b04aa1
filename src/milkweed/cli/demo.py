"""`milkweed demo`."""

import argparse
from pathlib import Path

from rich.console import Console

from milkweed.cli.arguments import CommandParser
from milkweed.cli.recipe import find_recipe

RECIPES = ("digits", "digits-mixer", "digits-monarch")


def run(arguments: list[str]) -> int:
    """Train three models on the digits and print one table.

    Args:
        arguments: The command line after the command.

    Returns:
        The exit code.
    """
    parser = CommandParser(
        "demo",
        "Train an S4D, a dense mixer and its Monarch twin on handwritten digits, and compare them.",
        "  milkweed demo --seed 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs; default: runs")
    options = parser.parse(arguments)

    from milkweed.cli.tables import print_results
    from milkweed.cli.train import train

    console = Console()
    outcomes = []
    for number, name in enumerate(RECIPES, 1):
        recipe = find_recipe(name)
        console.print(f"[bold]{number}/{len(RECIPES)}[/] {recipe.description}", highlight=False)
        new_run = argparse.Namespace(recipe=name, name=None, out=options.out, resume=None, trust=False)
        outcomes.append(train(recipe, new_run, [("seed", options.seed)], console))
    print_results(console, outcomes)
    return 0
