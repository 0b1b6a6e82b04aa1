"""`milkweed recipes`."""

from milkweed.cli.console import echo, in_columns
from milkweed.cli.recipe import description, shipped_recipes

EXAMPLE = "  milkweed recipes"


def recipes() -> None:
    """List the recipes that come with milkweed."""
    in_columns([(name, description(path.read_text(encoding="utf-8"))) for name, path in shipped_recipes().items()])
    echo("\nmilkweed train RECIPE; milkweed train RECIPE --help lists its options")
