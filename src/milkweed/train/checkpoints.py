"""Which checkpoints a run keeps: the newest two, and the best on validation."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from milkweed._files import atomic_write
from milkweed.train.checkpoint_io import (
    CheckpointError,
    is_plain_file,
    list_checkpoints,
    read_checkpoint,
    step_in_name,
)

BEST = "best.ckpt"


class KeepCheckpoints(Checkpoint):
    """Save after every epoch, and within epochs if asked; keep the newest few and the best.

    Lightning's `ModelCheckpoint` remembers absolute paths, and forgets its scores once a run folder has been moved.
    Here the state holds numbers only, and the best checkpoint is a link to one that was saved anyway.

    Args:
        folder: Where the files go: `step-NNNNNNNNN.ckpt` and `best.ckpt`.
        monitor: Metric that decides which is the best, the latest of equal ones. One that is not finite never
            counts; as long as there is no other, and without validation, the newest checkpoint is the best.
        every_n_train_steps: Save also after every so many optimiser steps; None: after epochs only.
        keep: How many of the newest to keep; more than one, so that a damaged file costs one interval only.
        larger_is_better: Whether its largest value is the best, or its smallest.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        every_n_train_steps: int | None = None,
        keep: int = 2,
        *,
        larger_is_better: bool = True,
    ) -> None:
        self.folder, self.monitor, self.larger_is_better = folder, monitor, larger_is_better
        self.every_n_train_steps, self.keep = every_n_train_steps, keep
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self._saved_step = 0
        self._batches_done = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must know about the best so far, and about the epoch it is saved in."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "batches_done": self._batches_done,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best so far, and the position in the epoch."""
        self.best_score, self.best_epoch = finite(state_dict["best_score"]), state_dict["best_epoch"]
        self.best_step, self._batches_done = state_dict["best_step"], state_dict["batches_done"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the folder in line with the state a resumed training starts from."""
        self._saved_step = trainer.global_step
        # Lightning offers loaders a state of their own, but restores it before these loaders exist.
        trainer.datamodule.resume_at(self._batches_done)
        if trainer.is_global_zero:
            self._roll_back(trainer.global_step)
        trainer.strategy.barrier("checkpoints")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch, where asked."""
        step = trainer.global_step
        if not self.every_n_train_steps or step == self._saved_step or step % self.every_n_train_steps:
            return
        # The last batch's checkpoint is the one of the epoch, which follows at once and knows the validation too.
        if not trainer.is_last_batch:
            self._save(trainer, batches_done=batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch; if it is the best so far, say so within the checkpoint and link it."""
        value = finite(trainer.callback_metrics.get(self.monitor))
        improved = self.best_score is None or (value is not None and self._no_worse(value, self.best_score))
        if improved:
            self.best_score, self.best_epoch, self.best_step = value, trainer.current_epoch, trainer.global_step
        path = self._save(trainer, batches_done=0)
        if improved and trainer.is_global_zero:
            link(path, self.folder / BEST)

    def _no_worse(self, value: float, best: float) -> bool:
        return value >= best if self.larger_is_better else value <= best

    def _save(self, trainer: Trainer, batches_done: int) -> Path:
        self._saved_step, self._batches_done = trainer.global_step, batches_done
        path = self.folder / f"step-{trainer.global_step:09d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for old in own_checkpoints(self.folder)[self.keep :]:
                old.unlink()
        return path

    def _roll_back(self, step: int) -> None:
        """Remove what lies beyond the state resumed from, and what a killed process left."""
        for path in own_checkpoints(self.folder):
            if step_in_name(path) > step:
                path.unlink()
        for leftover in self.folder.glob(".*.ckpt"):
            if is_plain_file(leftover):
                leftover.unlink()
        if self.best_step is None:
            return
        best, source = self.folder / BEST, self.folder / f"step-{self.best_step:09d}.ckpt"
        if step_of(source) == self.best_step:
            # The process may have died between saving and linking.
            link(source, best)
        elif step_of(best) != self.best_step:
            # The best file is damaged, or was made later than this state: the next epoch replaces it in any case.
            self.best_score = None


def finite(value: Any) -> float | None:
    """A score that can be compared; None for NaN and infinity, which would win or lose every comparison."""
    return None if value is None or not math.isfinite(value) else float(value)


def own_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that a training here may count, resume from and remove: plain files by falling step, no links."""
    return [path for path in list_checkpoints(folder) if is_plain_file(path)]


def step_of(path: Path) -> int | None:
    """The optimiser step at which a checkpoint was saved; None if it is missing, a link, or damaged."""
    if not is_plain_file(path):
        return None
    try:
        return read_checkpoint(path)["global_step"]
    except CheckpointError:
        return None


def epochs_done(path: Path) -> int:
    """How many epochs a checkpoint has trained to their end."""
    state = read_checkpoint(path).get("callbacks", {}).get("MetricsTable", {})
    return len(state.get("rows", ()))


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` in one move; a copy where the file system has no hard links."""
    with atomic_write(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def check_fits(task: LightningModule, path: Path) -> None:
    """Refuse a checkpoint of another architecture before anything is written.

    A task that has been made dense on the way changes its own layers accordingly.
    """
    checkpoint = read_checkpoint(path)
    task.on_load_checkpoint(checkpoint)
    stored, wanted = checkpoint["state_dict"], task.state_dict()
    for name in wanted.keys() | stored.keys():
        have, want = stored.get(name), wanted.get(name)
        if name.startswith("model.") and (have is None or want is None or have.shape != want.shape):
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (have, want)]
            raise CheckpointError(
                f"checkpoint {path} belongs to another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "leave the options of the model as they were, or start a new run under another name"
            )


def load_weights(task: LightningModule, path: Path) -> int:
    """Load the weights of a checkpoint and return the epoch after which it was saved."""
    checkpoint = read_checkpoint(path)
    task.on_load_checkpoint(checkpoint)
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {path} belongs to another model: {error}") from error
    return checkpoint["epoch"]
