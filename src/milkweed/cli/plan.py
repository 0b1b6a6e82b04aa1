"""Where a training starts and where it goes: a new run, or one that is continued."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from milkweed.cli.errors import UsageError
from milkweed.cli.options import Overrides, natural_options
from milkweed.cli.recipe import Recipe
from milkweed.train.checkpoint_io import read_checkpoint
from milkweed.train.checkpoints import step_of
from milkweed.train.environment import describe_environment
from milkweed.train.run_folder import RunFolder, check_name, check_writable, is_empty
from milkweed.train.run_lock import locked
from milkweed.train.session import run_of_parent
from milkweed.train.trusted import import_named_classes, import_paths


@dataclass(frozen=True)
class Plan:
    """Where a training starts and where it goes.

    Attributes:
        recipe: Name of the recipe.
        values: Values to start from: the recipe's, or those of the run that is continued.
        overrides: What the command line changes in them.
        out: Folder of all runs.
        name: Name asked for, or None for the recipe's with a number if it is taken.
        folder: The existing run to continue; None for a new one.
        checkpoint: Where it continues; None for the beginning.
        typed: The recipe as it was asked for, a name or a path.
    """

    recipe: str
    values: dict[str, Any]
    overrides: Overrides
    out: Path
    name: str | None = None
    folder: RunFolder | None = None
    checkpoint: Path | None = None
    typed: str = ""

    def resume_command(self, folder: RunFolder) -> str:
        """The command that continues this training.

        Args:
            folder: Its run.

        Returns:
            A line for the shell.
        """
        out = [] if folder.path.parent == Path("runs") else ["--out", str(folder.path.parent)]
        return shlex.join(["milkweed", "train", self.typed, "--name", folder.name, *out, "--resume", "auto"])


def make_plan(
    recipe: Recipe, options: argparse.Namespace, overrides: Overrides, console: Console, held: ExitStack
) -> Plan:
    """Decide between a new run and one that is continued; nothing is written yet.

    Args:
        recipe: The recipe.
        options: `name`, `out`, `resume` and `trust`.
        overrides: What the command line changes.
        console: Told what is continued.
        held: Gets the lock of a run that is continued.

    Returns:
        The plan.

    Raises:
        UsageError: If processes were started in a way that cannot work.
    """
    # What the user names now, in the recipe or as an option, a run may name as well.
    import_named_classes(recipe.values)
    given = import_paths([recipe.values, *(value for _, value in overrides)])
    parent = run_of_parent()
    if parent:
        # The first process has resolved everything and written it down.
        folder, checkpoint = parent
        config = folder.read_config(trust=options.trust, given=given)
        return Plan(recipe.name, config, [], folder.path.parent, folder.name, folder, checkpoint, recipe.typed)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            "torchrun cannot start milkweed, which starts its own processes; run the plain command with "
            "--trainer.strategy ddp --trainer.devices N"
        )
    check_name(recipe.name if options.name is None else options.name)
    check_writable(options.out / (options.name or recipe.name))
    if options.resume is not None:
        folder, checkpoint = find_resumable(recipe, options, console, held)
        if folder:
            at = f"step {step_of(checkpoint)}" if checkpoint else "the beginning"
            config = folder.read_config(trust=options.trust, given=given)
            console.print(f"Continuing [bold]{escape(str(folder.path))}[/] from {at}.", highlight=False)
            return Plan(recipe.name, config, overrides, options.out, folder.name, folder, checkpoint, recipe.typed)
        console.print("Nothing to resume yet; starting from the beginning.")
    return Plan(recipe.name, recipe.values, overrides, options.out, options.name, typed=recipe.typed)


def find_resumable(
    recipe: Recipe, options: argparse.Namespace, console: Console, held: ExitStack
) -> tuple[RunFolder | None, Path | None]:
    """Find the run, and the checkpoint in it, that a resumed training continues.

    Args:
        recipe: The recipe.
        options: `name`, `out` and `resume`.
        console: Told which checkpoints are damaged.
        held: Gets the lock of the run, before its newest checkpoint is looked for.

    Returns:
        The run and its checkpoint; None for what does not exist yet.

    Raises:
        UsageError: If the checkpoint belongs to no run, or to one of another recipe or name.
    """

    def warn(text: str) -> None:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    if options.resume == "auto":
        named = RunFolder(options.out / options.name) if options.name else None
        folder = named or RunFolder.newest(options.out, recipe.name)
        if folder is None or not folder.path.is_dir():
            return None, None
        held.enter_context(locked(folder.path))
        if not folder.config.is_file():
            held.close()
            if is_empty(folder.path):
                folder.path.rmdir()  # all that a process killed at its very start leaves
            return None, None
        folder.check_own()
        checkpoint = folder.newest_checkpoint(warn)
    else:
        checkpoint = Path(options.resume)
        read_checkpoint(checkpoint)
        folder = RunFolder(checkpoint.absolute().parent.parent)
        if not folder.config.is_file():
            raise UsageError(f"--resume {checkpoint} lies in no run folder; expected runs/NAME/checkpoints/FILE")
        if options.name and options.name != folder.name:
            raise UsageError(f"--resume {checkpoint} belongs to run {folder.name}, not to --name {options.name}")
        held.enter_context(locked(folder.path))
        folder.check_own()
    made_from = folder.read_environment(warn).get("recipe", recipe.name)
    if made_from != recipe.name:
        raise UsageError(f"{folder.path} was made from recipe {made_from}, not {recipe.name}; resume it with that one")
    return folder, checkpoint


@contextmanager
def prepared_folder(plan: Plan) -> Iterator[RunFolder]:
    """The run's folder; a new one is locked, and vanishes again if the training fails before its first checkpoint.

    Args:
        plan: The plan.

    Yields:
        The folder.
    """
    if plan.folder:
        yield plan.folder
        return
    made = [path for path in (plan.out, *plan.out.parents) if not path.exists()]
    folder = RunFolder.create(plan.out, plan.name or plan.recipe, numbered=plan.name is None)
    with locked(folder.path):
        try:
            yield folder
        except BaseException:
            if not folder.checkpoint_files():
                shutil.rmtree(folder.path)
                with suppress(OSError):  # another run may have come to live there
                    for path in made:
                        path.rmdir()
            raise


def record(plan: Plan, folder: RunFolder, config: dict[str, Any], console: Console) -> None:
    """Write the resolved configuration and the environment into the run.

    Args:
        plan: The plan.
        folder: The run's folder.
        config: The resolved configuration.
        console: Told what a resumed run changes.
    """
    recipe = Path(plan.typed) if Path(plan.typed).suffix and Path(plan.typed).is_file() else None
    environment = describe_environment(["milkweed", *sys.argv[1:]], recipe)
    if plan.folder:
        before, now = natural_options(plan.values), natural_options(config)
        for name in now:
            if before.get(name) != now[name]:
                text = f"Changed: {name}, {before.get(name)} before, {now[name]} now."
                console.print(text, highlight=False, markup=False)
        earlier = {"recipe": plan.recipe} | folder.read_environment()
        resumed = earlier.get("resumed")
        content = earlier | {"resumed": [*(resumed if isinstance(resumed, list) else []), environment]}
    else:
        content = {"recipe": plan.recipe, "seed": config["seed"], **environment}
    folder.write_config(config)
    folder.write_environment(content)
