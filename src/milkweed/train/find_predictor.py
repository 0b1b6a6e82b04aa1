"""Finding the predictor of a run."""

from pathlib import Path

import torch

from milkweed.tasks.base import Task
from milkweed.tasks.classification import Classification
from milkweed.train.predictor import Predictor
from milkweed.train.run_parts import read_parts
from milkweed.train.text_predictors import TEXT_PREDICTORS


def load_predictor(run: str | Path, *, trust: bool = False, device: torch.device | str = "cpu") -> Predictor:
    """Load a finished run for predictions, without its data.

    Args:
        run: Its folder, e.g. `runs/digits`.
        trust: Import and run the code that the run's config.yaml names, wherever it comes from.
        device: Where the model runs.

    Raises:
        FileNotFoundError: There is no such run, or it is not finished.
        ValueError: The run does not say how inputs are read, or a file of it is damaged.
    """
    model, task, preprocessing, temperature = read_parts(Path(run), trust)
    if isinstance(task, Classification):
        task.temperature.fill_(temperature)
    return predictor_class(task)(model.to(device), task.to(device), preprocessing, str(run))


def predictor_class(task: Task) -> type[Predictor]:
    """What predicts for a task."""
    return next((kind for known, kind in TEXT_PREDICTORS.items() if isinstance(task, known)), Predictor)
