"""A finished run as it is compared with others: its options, results and learning curve, each checked when read."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from milkweed._files import read_json_file
from milkweed.train import run_config
from milkweed.train.callbacks import read_rows
from milkweed.train.model_costs import forward_flops
from milkweed.train.recipe.build import build, complete
from milkweed.train.recipe.check import checked
from milkweed.train.recipe.schema import options_of
from milkweed.train.recipe.words import natural_options
from milkweed.train.run_folder import RunFolder
from milkweed.train.trusted import UntrustedClassError, check_classes

LARGEST_RESULTS = 2**20
# Which numbers of results.json are compared, beside the test metric; older runs lack some of them.
COSTS = ("parameters", "flops", "seconds_per_step", "seconds_per_epoch", "seconds", "peak_memory_bytes")
# What does not change what is learned: where data lie and what is shown.
UNCOMPARED = ("seed", "data.root", "trainer.logger", "trainer.enable_progress_bar", "trainer.log_every_n_steps")
# Metrics of runs that do not say yet which way is better.
_LARGER_IS_BETTER = {"accuracy": True, "f1": True, "rmse": False, "loss": False, "perplexity": False}


@dataclass(frozen=True)
class FinishedRun:
    """A run that has been tested."""

    folder: RunFolder
    recipe: str
    options: dict[str, Any]  # by natural name, those that decide what is learned; "data", "model", "task" are classes
    results: dict[str, Any]  # the content of results.json
    rows: list[dict[str, float]]  # of metrics.csv

    @property
    def metric(self) -> str:
        """What the run is judged by."""
        return self.results["metric"]

    @property
    def value(self) -> float:
        """Its test metric; NaN if that was not finite."""
        return _number(self.results["test"][self.metric])

    @property
    def seed(self) -> int | None:
        """Its seed."""
        return self.results.get("seed")

    @property
    def larger_is_better(self) -> bool | None:
        """Whether the largest value of the metric is the best; None if nobody knows."""
        return self.results.get("larger_is_better", _LARGER_IS_BETTER.get(self.metric))

    def cost(self, name: str) -> float:
        """One of `COSTS`; NaN if the run has not measured it."""
        return _number(self.results.get(name))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def read_run(path: str | Path) -> FinishedRun:
    """Read a finished run; a ValueError or OSError says why a folder is none."""
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path} is not a folder")
    if not folder.config.is_file():
        raise ValueError(f"{folder.path} is no run: it has no config.yaml")
    config = run_config.read_config(folder.config)
    rows = read_rows(folder.metrics) if folder.metrics.is_file() else []
    if not folder.results.is_file():
        raise ValueError(f"{folder.path} is unfinished: {len(rows)} epochs are trained, and it was not tested yet")
    results = _checked_results(folder.results)
    if len(rows) > results.get("epochs", len(rows)):
        raise ValueError(
            f"{folder.path} is unfinished: it was continued after its test, from {results['epochs']} epochs to "
            f"{len(rows)}"
        )
    trusted = True
    try:
        check_classes(config, folder.config)
    except UntrustedClassError:  # its classes are the user's, and were not imported: only what is written counts
        trusted = False
    if trusted and results.get("flops") is None and "densified" not in results:
        results["flops"] = _counted_flops(config)
    recipe = folder.read_environment().get("recipe", folder.name)
    return FinishedRun(folder, str(recipe), compared_options(config, with_defaults=trusted), results, rows)


def _checked_results(file: Path) -> dict[str, Any]:
    """The content of results.json, with every number that is compared a number."""
    content = read_json_file(file, LARGEST_RESULTS)
    if not isinstance(content, dict) or not isinstance(content.get("test"), dict):
        raise ValueError(f"{file} is damaged: it holds no test metrics; resuming the run writes it anew")
    content.setdefault("metric", "accuracy")  # runs of 0.1.0 do not say
    metric = content["metric"]
    if not isinstance(metric, str) or metric not in content["test"]:
        raise ValueError(f"{file} is damaged: its test has no {metric}; resuming the run writes it anew")
    numbers = {name: content.get(name) for name in (*COSTS, "seed", "epochs")} | {metric: content["test"][metric]}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{file} is damaged: {name} is {value!r}, not a number; resuming the run writes it anew")
    return content


def compared_options(config: dict[str, Any], *, with_defaults: bool = True) -> dict[str, Any]:
    """The options of a configuration that decide what is learned, by natural name, defaults of layers included."""
    found = natural_options(config)
    if with_defaults:
        schema = options_of(config)
        found = {name: schema[name].default for name in schema.listed()} | found
    if config["trainer"].get("densify") is None:  # of which the defaults then say nothing
        found = {name: value for name, value in found.items() if not name.startswith("trainer.densify")}
        found["trainer.densify.at"] = None
    for section in ("data", "model", "task"):
        found[section] = str(config[section].get("class_path")).rpartition(".")[2]
    return {
        name: value
        for name, value in found.items()
        if not any(name == each or name.startswith(f"{each}.") for each in UNCOMPARED)
    }


def _counted_flops(config: dict[str, Any]) -> int | None:
    """FLOPs of a run that did not record them, by building its model without values."""
    with suppress(Exception):  # data may be gone, options may have new names: the table then has a gap
        with torch.device("meta"):
            parts = build(complete(checked(config)))
        return forward_flops(parts.module.model, parts.data)
    return None
