"""A description of where and how a run was made, for its folder."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from milkweed.train.repository import describe_repository

PACKAGES = ("milkweed", "torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "scikit-learn", "safetensors")


def describe_environment(command: list[str], recipe: Path | None = None) -> dict[str, Any]:
    """Collect versions, machine, threads, the command, and which code it was, as plain values for JSON."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "repositories": {
            "milkweed": describe_repository(Path(__file__).parent, Path(__file__).name),
            "working_folder": describe_repository(Path.cwd()),
            "recipe": describe_repository(recipe.resolve().parent) if recipe else None,
        },
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model name from /proc where there is one: `platform.processor` is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
