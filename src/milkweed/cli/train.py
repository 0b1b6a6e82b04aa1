"""`milkweed train`."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from milkweed.cli.arguments import CommandParser
from milkweed.cli.describe import recipe_options
from milkweed.cli.options import Overrides, split_overrides
from milkweed.cli.recipe import Recipe, find_recipe

if TYPE_CHECKING:
    from milkweed.cli.plan import Plan

EXAMPLE = """\
  milkweed train digits --name wide --model.d_model 96 --task.lr 0.005
  milkweed train digits --name wide --resume auto
  milkweed train digits --model.layer.bidirectional true --model.layer.init lin
  milkweed train digits --model MlpMixer --model.linear.name monarch
  milkweed train digits-monarch --trainer.densify.at 0.9
  milkweed train digits --trainer.strategy ddp --trainer.devices 2
  milkweed train digits --help        lists the options of this recipe"""


TRUST = "import and run the code that the run's config.yaml names, wherever it comes from"


def make_parser() -> CommandParser:
    """The command's own arguments.

    Returns:
        A parser.
    """
    parser = CommandParser(
        "train",
        "Train a recipe. Every value of the recipe is an option: --data.…, --model.…, --task.…, --trainer.…, --seed.",
        EXAMPLE,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name listed by `milkweed recipes`, or a YAML file")
    parser.add_argument("--name", help="name of the run; default: the recipe's, with a number if it is taken")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs; default: runs")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="auto: continue the run, or start it if there is nothing yet; PATH: continue from this checkpoint",
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    return parser


def run(arguments: list[str]) -> int:
    """Train, and print a table of the result.

    Args:
        arguments: The command line after the command.

    Returns:
        The exit code.
    """
    own, overrides = split_overrides(arguments)
    if {"--help", "-h"} & set(own):
        print_help([argument for argument in own if not argument.startswith("-")])
        return 0
    options = make_parser().parse(own, recipe_options)
    console = Console()
    outcome = train(find_recipe(options.recipe), options, overrides, console)
    if outcome:
        from milkweed.cli.tables import print_results

        print_results(console, [outcome])
    return 0


def print_help(recipes: list[str]) -> None:
    """Print the command's help, and the options of a recipe if one is named.

    Args:
        recipes: The positional arguments.
    """
    make_parser().print_help()
    if recipes:
        from milkweed.cli.describe import print_options

        print_options(Console(), find_recipe(recipes[0]))


def train(recipe: Recipe, options: argparse.Namespace, overrides: Overrides, console: Console) -> Any:
    """Train one recipe from its values to a finished run folder.

    Args:
        recipe: The recipe.
        options: `name`, `out`, `resume` and `trust`.
        overrides: What the command line changes in the recipe.
        console: Where the training is watched.

    Returns:
        The run folder and the content of its results.json; None in the further processes of a distributed training.
    """
    from milkweed.cli.plan import make_plan
    from milkweed.train.quiet_lightning import quiet

    quiet()
    with ExitStack() as held:
        return carry_out(make_plan(recipe, options, overrides, console, held), console)


def carry_out(plan: "Plan", console: Console) -> Any:
    """Train what is planned.

    Args:
        plan: Where the training starts and where it goes.
        console: Where the training is watched.

    Returns:
        The run folder and the content of its results.json; None in the further processes of a distributed training.

    Raises:
        TrainingInterrupted: If it was stopped from outside; the message says what is kept and how to go on.
        DiskFullError: If a file could not be written; so does that message.
    """
    from milkweed._disk import DiskFullError
    from milkweed.cli.build import build, resolve
    from milkweed.cli.plan import prepared_folder, record
    from milkweed.train.checkpoints import check_fits
    from milkweed.train.session import Session, TrainingInterrupted

    config = resolve(plan.values, plan.overrides)
    parts = build(config)
    parts.data.setup()
    if plan.checkpoint:
        check_fits(parts.module, plan.checkpoint)
    with prepared_folder(plan) as folder:
        session = Session(parts.data, parts.module, parts.trainer_options, parts.seed, folder, console)
        trainer = session.make_trainer()
        parts.data.check_processes(trainer.world_size)
        if trainer.is_global_zero:
            record(plan, folder, config, console)
        try:
            session.fit(trainer, plan.checkpoint)
            results = session.finish(trainer)
        except TrainingInterrupted as stop:
            saved = folder.checkpoint_files()
            if not saved:
                raise TrainingInterrupted("Stopped before the first checkpoint: nothing is kept.") from stop
            raise TrainingInterrupted(
                f"Stopped. {saved[0]} is saved; go on with\n  {plan.resume_command(folder)}"
            ) from stop
        except DiskFullError as full:
            saved = folder.checkpoint_files()
            if saved:
                full.kept = f"{saved[0]} is saved; then go on with\n  {plan.resume_command(folder)}"
            raise
    return (folder, results) if trainer.is_global_zero else None
