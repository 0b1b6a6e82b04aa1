"""What a run folder holds of a training: its model, task and preprocessing, made without the data."""

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from milkweed._files import read_json_file
from milkweed.convert import load_pretrained
from milkweed.data.base import SequenceData
from milkweed.data.preprocessing import FILE, Preprocessing, read_preprocessing
from milkweed.tasks.base import Task
from milkweed.train.recipe.build import OPTIMISATION, build, class_of
from milkweed.train.run_folder import RunFolder, write_json


def write_preprocessing(folder: RunFolder, data: Any) -> None:
    """Write how raw inputs are read into a run, if its data module says so; its setup has been done."""
    found = data.preprocessing() if isinstance(data, SequenceData) else None
    if found is not None:
        write_json(folder.preprocessing, found.as_dict())


def read_parts(path: Path, trust: bool = False) -> tuple[nn.Module, Task, Preprocessing, float]:
    """The model, the task, the preprocessing and the temperature of a finished run."""
    folder = RunFolder(path)
    config = folder.read_config(trust=trust)
    if not folder.model.is_file():
        raise FileNotFoundError(f"{folder.path} has no model.safetensors: finish its training with --resume auto")
    model = load_pretrained(folder.path)
    task = _task(folder, config, model)
    return model, task, _preprocessing(folder, config), read_temperature(folder)


def read_temperature(folder: RunFolder) -> float:
    """What the logits of a run are divided by; 1 if it was not calibrated."""
    if not folder.calibration.is_file():
        return 1.0
    content = read_json_file(folder.calibration, 2**20)
    found = content.get("temperature") if isinstance(content, dict) else None
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < 1e6:
        raise ValueError(
            f"{folder.calibration} is damaged: temperature must be a number above 0; delete the file to predict without"
        )
    return float(found)


def _task(folder: RunFolder, config: dict[str, Any], model: nn.Module) -> Task:
    """Build a task of the options in a config; what a recipe links to the data, the model knows too."""
    section = config["task"]
    kind = class_of("task", section["class_path"])
    if kind is None or not issubclass(kind, Task):
        raise TypeError(
            f"{folder.path}: task.class_path={section['class_path']} is no milkweed.tasks.Task, so that it is not "
            "known what its outputs mean; use Lightning's Trainer.predict with it"
        )
    options = {name: value for name, value in (section.get("init_args") or {}).items() if name not in OPTIMISATION}
    if "num_classes" in inspect.signature(kind).parameters:
        options.setdefault("num_classes", getattr(model, "options", {}).get("d_output"))
    return kind(**options)


def _preprocessing(folder: RunFolder, config: dict[str, Any]) -> Preprocessing:
    if folder.preprocessing.is_file():
        return read_preprocessing(folder.path)
    missing = f"{folder.path} has no {FILE}, which says how inputs are read"
    try:
        data = build(config | {"trainer": {}}).data
        found = data.preprocessing()
    except Exception as error:
        raise ValueError(
            f"{missing}, and it cannot be made from its data ({error}); put the data where config.yaml names them, or "
            "train it again"
        ) from error
    if found is None:
        raise ValueError(
            f"{missing}: give {type(data).__name__} a method preprocessing() that returns a "
            "milkweed.data.Preprocessing, e.g. milkweed.data.Signals(width=1, mean=0.0, std=1.0)"
        )
    found.folder = folder.path
    return found
