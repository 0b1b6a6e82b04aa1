"""`milkweed train`."""

from pathlib import Path

from milkweed.cli.options import Overrides

EXAMPLE = """\
  milkweed train digits --name wide --model.d_model 96 --task.lr 0.005
  milkweed train digits --name wide --resume auto
  milkweed train digits --model.layer.bidirectional true --model.layer.init lin
  milkweed train digits --model MlpMixer --model.linear.name monarch
  milkweed train digits-monarch --trainer.densify.at 0.9
  milkweed train digits --trainer.strategy ddp --trainer.devices 2
  milkweed train digits --help        lists the options of this recipe"""


def train(
    recipe: str,
    overrides: Overrides,
    *,
    name: str | None = None,
    out: Path = Path("runs"),
    resume: str | None = None,
    trust: bool = False,
) -> None:
    """Train a recipe. Every value of the recipe is an option: --data.…, --model.…, --task.…, --trainer.…, --seed.

    Args:
        recipe: a name listed by `milkweed recipes`, or a YAML file
        name: name of the run; default: the recipe's, with a number if it is taken
        out (DIR): folder of all runs
        resume (auto|PATH): auto: continue the run of this name, without --name the newest of the recipe, or start it
            if there is nothing yet; PATH: continue from this checkpoint. Options that are not given stay as the run has
            them
        trust: import and run the code that the run's config.yaml names, wherever it comes from
    """
    from milkweed.cli.tables import print_results

    outcome = train_one(recipe, overrides, out, name, resume, trust)
    if outcome:
        print_results([outcome])


def train_one(recipe: str, overrides: Overrides, out: Path, name=None, resume=None, trust=False):
    """Train one recipe: the run folder and its results, or None in all but the first of several processes."""
    from contextlib import ExitStack

    from rich.console import Console

    from milkweed.cli.build import resolve
    from milkweed.cli.recipe import find_recipe
    from milkweed.train.plan import Plan, carry_out, settle
    from milkweed.train.quiet_lightning import quiet

    quiet()
    console, found = Console(), find_recipe(recipe)
    with ExitStack() as held:
        plan = Plan(found.name, found.values, overrides, out, name, typed=found.typed)
        plan = settle(plan, resume, trust, console, held)
        return carry_out(plan, resolve(plan.values, plan.overrides), console)
