"""Loggers by short name: where they write within the run folder, and what they are told of the run."""

import csv
import importlib.util
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from milkweed._files import atomic_write
from milkweed._suggest import UsageError

LoggerName = Literal["csv", "tensorboard", "wandb"]
LOGGERS: tuple[str, ...] = get_args(LoggerName)
# Packages any of which a logger needs; the first is the one to install.
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
_PROJECT = "milkweed"


def named_loggers(given: Any) -> list[str]:
    """The short names among the values of `trainer.logger`."""
    values = given if isinstance(given, list | tuple) else [given]
    return [each for each in values if isinstance(each, str) and each in LOGGERS]


def check_loggers(given: Any) -> None:
    """Refuse a logger whose package is missing, before anything is written."""
    for name in named_loggers(given):
        packages = _PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ModuleNotFoundError(
                f"--trainer.logger {name} needs {packages[0]}, which is not installed: pip install {packages[0]}"
            )


def make_loggers(given: Any, folder: Path, step: int | None) -> Any:
    """Put loggers in the place of short names; they go on from a step where the run does. Other values stay."""
    if isinstance(given, list | tuple):
        return [make_loggers(each, folder, step) for each in given]
    if given not in LOGGERS:
        return given
    logs = folder / "logs"
    if given == "csv":
        return _csv(logs, step)
    if given == "tensorboard":
        # What was logged beyond the checkpoint will come again.
        options = {} if step is None else {"purge_step": step}
        return TensorBoardLogger(logs, "tensorboard", "", default_hp_metric=False, **options)
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    return WandbLogger(folder.name, logs, id=_wandb_id(logs), project=project, resume="allow")


def _csv(logs: Path, step: int | None) -> CSVLogger:
    """Lightning's logger, which would begin its file anew, with the rows up to the step."""
    place = logs / "csv"
    rows = [] if step is None else _rows_until(place / "metrics.csv", step)
    if rank_zero_only.rank == 0 and place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    logger = CSVLogger(logs, "csv", "")
    for row in rows:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
    return logger


def _rows_until(path: Path, step: int) -> list[dict[str, float]]:
    """Rows of training and validation; those of the test come again."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = [{name: float(text) for name, text in row.items() if name and text} for row in csv.DictReader(file)]
        except (ValueError, TypeError, csv.Error):  # cut off by a crash; metrics.csv of the run has all of it
            return []
    kept = [row for row in rows if row.get("step", step) < step]
    return [row for row in kept if not any(name.startswith("test_") for name in row)]


def _wandb_id(logs: Path) -> str:
    """The run's name at Weights & Biases, by which a resumed run is the same one."""
    file = logs / "wandb-id"
    known = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    if known.isalnum() and len(known) <= 64:
        return known
    made = uuid.uuid4().hex[:12]
    if rank_zero_only.rank == 0:
        with atomic_write(file) as temporary:
            temporary.write_text(f"{made}\n", encoding="utf-8")
    return made


@rank_zero_only
def describe_run(loggers: Iterable[Logger], options: dict[str, Any], metrics: list[str], *, again: bool) -> None:
    """Tell all loggers the options of a run, by natural name, once."""
    values = {name: _simple(value) for name, value in options.items()}
    for logger in loggers:
        _start(logger)
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(values, allow_val_change=True)
            continue
        logger.log_hyperparams(values)
        if isinstance(logger, TensorBoardLogger) and not again:
            _show_options(logger, values, metrics)


def _start(logger: Logger) -> None:
    """Let a logger begin, which is when Weights & Biases wants an account."""
    if isinstance(logger, WandbLogger):
        try:
            logger.experiment  # noqa: B018
        except Exception as error:
            raise UsageError(
                f"--trainer.logger wandb: {error}; log in by `wandb login`, or set WANDB_MODE=offline to log into the "
                "run folder without an account"
            ) from error


def _show_options(logger: TensorBoardLogger, values: dict[str, Any], metrics: list[str]) -> None:
    """Fill TensorBoard's page of hyperparameters; its columns are scalars that the training logs."""
    from torch.utils.tensorboard.summary import hparams

    known = {name: value for name, value in values.items() if value is not None}
    logger.experiment.flush()  # which makes the file
    for part in hparams(known, dict.fromkeys(metrics, 0.0)):
        logger.experiment.file_writer.add_summary(part)


def _simple(value: Any) -> Any:
    """A value that every logger takes."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, default=str)


@rank_zero_only
def end_loggers(loggers: Iterable[Logger]) -> None:
    """End the run at Weights & Biases, which the next training of this process would go on with."""
    if any(isinstance(logger, WandbLogger) for logger in loggers) and "wandb" in sys.modules:
        sys.modules["wandb"].finish()
