"""One training from its parts to a finished run folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from milkweed.convert import save_pretrained
from milkweed.data.base import SequenceData
from milkweed.nn.wrappers import is_sharded, unwrapped
from milkweed.plots import save_confusion_matrix, save_learning_curves
from milkweed.train.calibration import calibrate, described
from milkweed.train.callbacks import MetricsTable, SeedSteps, read_rows, write_rows
from milkweed.train.checkpoint_io import AtomicCheckpointIO, is_plain_file, read_checkpoint
from milkweed.train.checkpoints import BEST, KeepCheckpoints, load_weights, step_of
from milkweed.train.densify import Densify
from milkweed.train.epoch_display import progress_callback
from milkweed.train.loggers import describe_run, make_loggers
from milkweed.train.model_costs import forward_flops
from milkweed.train.run_folder import RunFolder, write_json
from milkweed.train.running_costs import RunningCosts

FOLDER_VARIABLE, CHECKPOINT_VARIABLE = "MILKWEED_RUN_FOLDER", "MILKWEED_CHECKPOINT"


class TrainingInterrupted(KeyboardInterrupt):
    """The user stopped the training (Ctrl-C), or the system did (SIGTERM)."""


@dataclass
class Session:
    """The parts of a training."""

    data: SequenceData  # the data module
    # The LightningModule; its `model` is what the run is about, its `metric` what it is judged by.
    module: LightningModule
    # Keyword arguments of Lightning's Trainer, `checkpoint_every_n_steps` and `densify`.
    trainer_options: dict[str, Any]
    seed: int  # the run's seed
    folder: RunFolder  # where everything is written
    console: Console  # where the training is watched
    options: dict[str, Any] = field(default_factory=dict)  # all options by natural name, for loggers
    table: MetricsTable = field(init=False)  # the rows of metrics, of the Trainer that was made last
    judge: KeepCheckpoints = field(init=False)  # its checkpoints
    costs: RunningCosts = field(init=False)  # its time and memory

    def make_trainer(self, checkpoint: Path | None = None) -> Trainer:
        """Build a Trainer with this library's callbacks, to go on from a checkpoint; nothing is trained yet."""
        options = dict(self.trainer_options)
        step = step_of(checkpoint) if checkpoint else None
        options["logger"] = make_loggers(options.get("logger"), self.folder.path, step)
        every_n_steps = options.pop("checkpoint_every_n_steps", None)
        self.table, self.costs = MetricsTable(self.folder.metrics), RunningCosts()
        self.judge = KeepCheckpoints(
            self.folder.checkpoints,
            f"val_{self.module.metric}",
            every_n_steps,
            larger_is_better=self.module.larger_is_better,
        )
        given = options.pop("callbacks", None) or []
        further = given if isinstance(given, list | tuple) else [given]
        callbacks = [SeedSteps(self.seed), self.table, self.costs, self.judge, *further]
        densify = options.pop("densify", None)
        if densify:
            callbacks.append(Densify(**asdict(densify), console=self.console))
        show = options.pop("enable_progress_bar", None) is not False
        if show:
            callbacks.append(progress_callback(self.console))
        return Trainer(
            **options,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=self.folder.path,
            enable_progress_bar=show and self.console.is_terminal,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )

    def fit(self, trainer: Trainer, checkpoint: Path | None = None) -> None:
        """Train, from the start or from a checkpoint."""
        metrics = [f"{stage}_{self.module.metric}" for stage in ("val", "test")]
        with interruptible(), shared_with_children(self.folder, checkpoint):
            describe_run(trainer.loggers, self.options, metrics, again=checkpoint is not None)
            trainer.fit(self.module, datamodule=self.data, ckpt_path=checkpoint)

    def finish(self, trainer: Trainer) -> dict[str, Any]:
        """Test the best weights and write model, figures and results; `results.json`, which is returned, comes last."""
        trainer.strategy.barrier("best checkpoint")  # the first process may still be writing it
        best = self._best_checkpoint(trainer)
        densified = getattr(self.module, "densified", None)  # of the last step; the best may be from before
        best_epoch = load_weights(self.module, best)
        with interruptible():
            calibration = calibrate(self.module, self.data)
            trainer.test(self.module, datamodule=self.data, verbose=False)
        # Those of the checkpoints: the file on the disk may have been damaged since.
        rows = self.table.rows
        results = self._results(trainer, rows, best_epoch)
        if densified is not None:
            dense = self.module.densified is not None
            results["densified"] = densified.as_dict() | {"saved_model_is_dense": dense}
            if not dense:
                text = f"Best epoch {best_epoch + 1} is from before layers became dense, and so is the saved model."
                self._warn(trainer, text)
        if calibration is not None:
            results["calibration"] = calibration
        # Collects the counts of all processes, so every process has to call it.
        counts = getattr(getattr(self.module, "task", self.module), "confusion", None)
        confusion = None if counts is None else counts.compute().cpu().numpy()
        if trainer.is_global_zero or is_sharded(
            self.module.model
        ):  # what is spread over processes they gather together
            save_pretrained(self.module.model, self.folder.path)
        if trainer.is_global_zero:
            self._renew_metrics(trainer, rows)
            self._draw(rows, confusion, best_epoch)
            if calibration is not None:
                self._write_calibration(calibration)
            write_json(self.folder.results, results)
        return results

    def _best_checkpoint(self, trainer: Trainer) -> Path:
        """The best checkpoint; the newest one, with a warning, if it is damaged."""
        best = self.folder.checkpoints / BEST
        found = [path for path in (best, *self.folder.checkpoint_files()) if step_of(path) is not None]
        if not found:
            if is_plain_file(best):
                read_checkpoint(best)  # says what is wrong with it
            raise ValueError("no epoch was trained, so there is nothing to test; use trainer.max_epochs=1 or more")
        if found[0] != best:
            self._warn(
                trainer, f"{best} is damaged or missing: {found[0].name}, the newest, is tested and saved instead."
            )
        elif self.judge.best_score is None and self.judge.monitor in trainer.callback_metrics:
            self._warn(trainer, f"{self.judge.monitor} was never a finite number: the newest epoch counts as the best.")
        return found[0]

    def _write_calibration(self, found: dict[str, float]) -> None:
        write_json(self.folder.calibration, described(found))
        before, after = found["test_calibration_error_before"], found["test_calibration_error"]
        self.console.print(
            f"Calibrated: temperature {found['temperature']:.3f}; expected calibration error on the test split "
            f"{before:.2%} before, {after:.2%} after.",
            highlight=False,
            soft_wrap=True,
        )

    def _renew_metrics(self, trainer: Trainer, rows: list[dict[str, float]]) -> None:
        try:
            read_rows(self.folder.metrics)
        except (ValueError, OSError) as error:
            self._warn(trainer, f"{error}; it is written anew from the checkpoints.")
        write_rows(self.folder.metrics, rows)

    def _warn(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def _results(self, trainer: Trainer, rows: list[dict[str, float]], best_epoch: int) -> dict[str, Any]:
        best = next((row for row in rows if row["epoch"] == best_epoch), {})
        seconds = sum(row["seconds"] for row in rows)
        return {
            "test": {
                name.removeprefix("test_"): value.item()
                for name, value in sorted(trainer.callback_metrics.items())
                if name.startswith("test_")
            },
            "best": {"epoch": best_epoch} | {name: value for name, value in best.items() if name.startswith("val_")},
            "metric": self.module.metric,
            "larger_is_better": self.module.larger_is_better,
            "model": type(unwrapped(self.module.model)).__name__,
            "parameters": sum(p.numel() for p in self.module.model.parameters() if p.requires_grad),
            "flops": forward_flops(self.module.model, self.data),
            "seed": self.seed,
            "processes": trainer.world_size,
            "epochs": len(rows),
            "steps": trainer.global_step,
            "seconds": round(seconds, 3),
            "seconds_per_epoch": round(seconds / max(1, len(rows)), 3),
            **self.costs.results(trainer),
        }

    def _draw(self, rows: list[dict[str, float]], confusion: np.ndarray | None, best_epoch: int) -> None:
        title = self.folder.name
        try:
            save_learning_curves(rows, self.folder.learning_curves, title, best_epoch, self.module.metric)
            if confusion is not None:
                names, path = self.data.class_names, self.folder.confusion_matrix
                save_confusion_matrix(confusion, names, path, f"{title}: test split")
        except ModuleNotFoundError as error:
            self.console.print(f"No figures: {error}", style="yellow", highlight=False, markup=False)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the SystemExit that Lightning raises on Ctrl-C and SIGTERM into `TrainingInterrupted`."""
    try:
        yield
    except SystemExit as stop:
        raise TrainingInterrupted from stop


@contextmanager
def shared_with_children(folder: RunFolder, checkpoint: Path | None) -> Iterator[None]:
    """Tell the processes that Lightning starts with the same command line which run they belong to."""
    os.environ[FOLDER_VARIABLE] = str(folder.path.absolute())
    os.environ[CHECKPOINT_VARIABLE] = str(checkpoint.absolute()) if checkpoint else ""
    try:
        yield
    finally:
        del os.environ[FOLDER_VARIABLE], os.environ[CHECKPOINT_VARIABLE]


def run_of_parent() -> tuple[RunFolder, Path | None] | None:
    """The run that this child of a distributed training is for, and its checkpoint; None in the first process."""
    if FOLDER_VARIABLE not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0":
        return None
    checkpoint = os.environ[CHECKPOINT_VARIABLE]
    return RunFolder(os.environ[FOLDER_VARIABLE]), Path(checkpoint) if checkpoint else None
