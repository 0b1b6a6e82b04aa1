"""`milkweed recipes`."""

from rich.console import Console
from rich.table import Table

from milkweed.cli.arguments import CommandParser
from milkweed.cli.recipe import find_recipe, shipped_recipes


def run(arguments: list[str]) -> int:
    """List the recipes, one line each.

    Args:
        arguments: The command line after the command.

    Returns:
        The exit code.
    """
    CommandParser("recipes", "List the recipes that come with milkweed.", "milkweed recipes").parse(arguments)
    table = Table.grid(padding=(0, 3))
    for name in shipped_recipes():
        table.add_row(f"[bold]{name}[/]", find_recipe(name).description)
    console = Console()
    console.print(table)
    console.print("\n[dim]milkweed train RECIPE; milkweed train RECIPE --help lists its options[/]", highlight=False)
    return 0
