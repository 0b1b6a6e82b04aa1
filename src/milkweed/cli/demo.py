"""`milkweed demo`."""

from pathlib import Path

RECIPES = ("digits", "digits-mixer", "digits-monarch")
EXAMPLE = "  milkweed demo --seed 1"


def demo(*, seed: int = 0, out: Path = Path("runs")) -> None:
    """Train an S4D, a dense mixer and its Monarch twin on handwritten digits, and compare them.

    Args:
        seed: decides initial weights, order of the samples and dropout
        out (DIR): folder of all runs
    """
    from rich.console import Console

    from milkweed.cli.recipe import find_recipe
    from milkweed.cli.tables import print_results
    from milkweed.cli.train import train_one

    outcomes = []
    for number, name in enumerate(RECIPES, 1):
        Console().print(f"[bold]{number}/{len(RECIPES)}[/] {find_recipe(name).description}", highlight=False)
        outcomes.append(train_one(name, [("seed", seed)], out))
    print_results(outcomes)
