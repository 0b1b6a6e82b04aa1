"""Where a training starts and where it goes: a new run, or one that is continued."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import distributed

from milkweed._disk import DiskFullError
from milkweed._suggest import UsageError
from milkweed.train.checkpoint_io import read_checkpoint
from milkweed.train.checkpoints import check_fits, epochs_done, step_of
from milkweed.train.environment import describe_environment
from milkweed.train.loggers import check_loggers, end_loggers
from milkweed.train.recipe.build import build
from milkweed.train.recipe.words import natural_options
from milkweed.train.run_folder import RunFolder, check_name, check_writable, is_empty
from milkweed.train.run_lock import locked
from milkweed.train.run_parts import write_preprocessing
from milkweed.train.session import Session, TrainingInterrupted, run_of_parent
from milkweed.train.trusted import import_named_classes, import_paths

# Where data lie and what computes: these may change when a finished run is only tested again.
PLACES = {"data.root", "trainer.accelerator", "trainer.devices", "trainer.strategy"}


@dataclass(frozen=True)
class Plan:
    """Where a training starts and where it goes.

    `values` are the recipe's, or those of the run that is continued; `overrides` is what the command line changes in
    them. `name` is None for the recipe's with a number if that is taken, `folder` None for a new run, `checkpoint` None
    for the beginning; `typed` is the recipe as it was asked for, a name or a path.
    """

    recipe: str
    values: dict[str, Any]
    overrides: Sequence[tuple[str, Any]]
    out: Path
    name: str | None = None
    folder: RunFolder | None = None
    checkpoint: Path | None = None
    typed: str = ""

    def resume_command(self, folder: RunFolder) -> str:
        """The command that continues this training."""
        out = [] if folder.path.parent == Path("runs") else ["--out", str(folder.path.parent)]
        return shlex.join(["milkweed", "train", self.typed, "--name", folder.name, *out, "--resume", "auto"])


def settle(plan: Plan, resume: str | None, trust: bool, console: Console, held: ExitStack) -> Plan:
    """Decide between a new run and one that is continued, whose lock goes to `held`; nothing is written yet."""
    # What the user names now, in the recipe or as an option, a run may name as well.
    import_named_classes(plan.values)
    given = import_paths([plan.values, *(value for _, value in plan.overrides)])
    parent = run_of_parent()
    if parent:
        # The first process has resolved everything and written it down.
        folder, checkpoint = parent
        config = folder.read_config(trust=trust, given=given)
        place = {"out": folder.path.parent, "name": folder.name, "folder": folder, "checkpoint": checkpoint}
        return replace(plan, values=config, overrides=[], **place)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            "torchrun cannot start milkweed, which starts its own processes; run the plain command with "
            "--trainer.strategy ddp --trainer.devices N"
        )
    check_name(plan.recipe if plan.name is None else plan.name)
    check_writable(plan.out / (plan.name or plan.recipe))
    if resume is not None:
        found, checkpoint = find_resumable(plan, resume, console, held)
        if found:
            at = f"step {step_of(checkpoint)}" if checkpoint else "the beginning"
            config = found.read_config(trust=trust, given=given)
            console.print(f"Continuing [bold]{escape(str(found.path))}[/] from {at}.", highlight=False)
            return replace(plan, values=config, name=found.name, folder=found, checkpoint=checkpoint)
        console.print("Nothing to resume yet; starting from the beginning.")
    return plan


def find_resumable(plan: Plan, resume: str, console: Console, held: ExitStack) -> tuple[RunFolder | None, Path | None]:
    """Find the run, and the checkpoint in it, that a resumed training continues."""

    def warn(text: str) -> None:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    if resume == "auto":
        folder = RunFolder(plan.out / plan.name) if plan.name else RunFolder.newest(plan.out, plan.recipe)
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
        checkpoint = Path(resume)
        read_checkpoint(checkpoint)
        folder = RunFolder(checkpoint.absolute().parent.parent)
        if not folder.config.is_file():
            raise UsageError(f"--resume {checkpoint} lies in no run folder; expected runs/NAME/checkpoints/FILE")
        if plan.name and plan.name != folder.name:
            raise UsageError(f"--resume {checkpoint} belongs to run {folder.name}, not to --name {plan.name}")
        held.enter_context(locked(folder.path))
        folder.check_own()
    made_from = folder.read_environment(warn).get("recipe", plan.recipe)
    if made_from != plan.recipe:
        raise UsageError(f"{folder.path} was made from recipe {made_from}, not {plan.recipe}; resume it with that one")
    return folder, checkpoint


def carry_out(plan: Plan, config: dict[str, Any], console: Console) -> tuple[RunFolder, dict[str, Any]] | None:
    """Train a resolved configuration: the run folder and its results, or None in all but the first process."""
    parts = build(config)
    check_loggers(parts.trainer_options.get("logger"))
    parts.data.setup()
    if plan.checkpoint:
        check_fits(parts.module, plan.checkpoint)
        check_goes_on(plan, config, plan.checkpoint)
    with prepared_folder(plan) as folder, own_process_group():
        options = natural_options(config)
        session = Session(parts.data, parts.module, parts.trainer_options, parts.seed, folder, console, options)
        trainer = session.make_trainer(plan.checkpoint)
        parts.data.check_processes(trainer.world_size)
        if trainer.is_global_zero:
            record(plan, folder, config, console)
            write_preprocessing(folder, parts.data)
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
        finally:
            end_loggers(trainer.loggers)
    return (folder, results) if trainer.is_global_zero else None


def check_goes_on(plan: Plan, config: dict[str, Any], checkpoint: Path) -> None:
    """Refuse options that a run with nothing left to train would record as if it had been trained with them."""
    done, most = epochs_done(checkpoint), config["trainer"]["max_epochs"]
    changed = changes(plan, config).keys() - PLACES
    given = [f"--{name}" for name, _ in plan.overrides if any(f"{each}.".startswith(f"{name}.") for each in changed)]
    if given and most is not None and 0 <= most <= done:
        raise UsageError(
            f"{', '.join(given)} would change nothing: {checkpoint} has trained {done} epochs already, and "
            f"--trainer.max_epochs is {most}; --trainer.max_epochs {done + 1} or more goes on, another --name, without "
            "--resume, starts anew"
        )


def changes(plan: Plan, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a continued run had, and what it has now, by natural name, where these differ."""
    before, now = natural_options(plan.values), natural_options(config)
    return {name: (before.get(name), now[name]) for name in now if before.get(name) != now[name]}


@contextmanager
def own_process_group() -> Iterator[None]:
    """End the process group that the block starts; its threads may abort an interpreter that ends before them."""
    before = distributed.is_available() and distributed.is_initialized()
    yield
    if distributed.is_available() and distributed.is_initialized() and not before:
        distributed.destroy_process_group()


@contextmanager
def prepared_folder(plan: Plan) -> Iterator[RunFolder]:
    """The run's folder; a new one is locked, and vanishes again if the training fails before its first checkpoint."""
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
    """Write the resolved configuration and the environment into the run."""
    recipe = Path(plan.typed) if Path(plan.typed).suffix and Path(plan.typed).is_file() else None
    environment = describe_environment(["milkweed", *sys.argv[1:]], recipe)
    if plan.folder:
        for name, (before, now) in changes(plan, config).items():
            console.print(f"Changed: {name}, {before} before, {now} now.", highlight=False, markup=False)
        earlier = {"recipe": plan.recipe} | folder.read_environment()
        resumed = earlier.get("resumed")
        content = earlier | {"resumed": [*(resumed if isinstance(resumed, list) else []), environment]}
    else:
        content = {"recipe": plan.recipe, "seed": config["seed"], **environment}
    folder.write_config(config)
    folder.write_environment(content)
