"""Callbacks of every training: repeatable randomness, and the table of metrics."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from milkweed._files import atomic_write
from milkweed._seeding import derived_seed, seed_generators


class SeedSteps(Callback):
    """Seed all generators before every batch from (seed, epoch, batch, rank).

    Dropout and other noise then depend on the step alone: a resumed training draws the same as an uninterrupted one,
    with no generator state in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this batch."""
        seed_generators(derived_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


class MetricsTable(Callback):
    """Keep one row of metrics per epoch, in the checkpoints and as a CSV file.

    The rows travel in the checkpoint and the file is always written from them. A resumed run therefore continues
    exactly the rows of its checkpoint: none is doubled, and those of lost epochs vanish.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the seconds spent in an unfinished epoch."""
        return {"rows": self.rows, "seconds": self._seconds + time.perf_counter() - self._since if self._since else 0.0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of a checkpoint."""
        self.rows, self._seconds = state_dict["rows"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known; start the clock."""
        self._since = time.perf_counter()
        self._write(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the metrics of the epoch before: an epoch without validation must not repeat them."""
        trainer.callback_metrics.clear()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the epoch."""
        now = time.perf_counter()
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], "seconds": self._seconds + now - self._since}
        self.rows.append(row)
        self._seconds, self._since = 0.0, now
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.rows:
            write_rows(self.path, self.rows)


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows as CSV in one move; a value missing in a row stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # The wall time comes last, so that files of equal trainings differ in their last column only.
    columns.sort(key=lambda name: name == "seconds")
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read what `write_rows` wrote: a dictionary for each row, without its empty values."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("it is cut off in its last row")
        header, *rows = csv.reader(io.StringIO(text), strict=True)
        if len(set(header)) < len(header) or not {"epoch", "seconds"} <= set(header):
            raise ValueError("its columns are not those of a run")
        named = [list(zip(header, row, strict=True)) for row in rows]
        return [{name: float(value) for name, value in row if value} for row in named]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}); resuming the run writes it anew") from error
