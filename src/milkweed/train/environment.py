"""A description of where and how a run was made, for its folder."""

import datetime
from pathlib import Path
from typing import Any

from milkweed._machine import describe_machine, describe_versions
from milkweed.train.repository import describe_repository

PACKAGES = ("milkweed", "torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "scikit-learn", "safetensors")


def describe_environment(command: list[str], recipe: Path | None = None) -> dict[str, Any]:
    """Collect versions, machine, threads, the command, and which code it was, as plain values for JSON."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": describe_versions(PACKAGES),
        "repositories": {
            "milkweed": describe_repository(Path(__file__).parent, Path(__file__).name),
            "working_folder": describe_repository(Path.cwd()),
            "recipe": describe_repository(recipe.resolve().parent) if recipe else None,
        },
        "machine": describe_machine(),
    }
