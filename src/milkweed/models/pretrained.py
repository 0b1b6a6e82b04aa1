"""A model in one file: safetensors with the architecture in its metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from milkweed._files import atomic_write
from milkweed._version import __version__
from milkweed.models.base import Model, build_model

FILE_NAME = "model.safetensors"


def save_pretrained(model: Model, path: str | os.PathLike[str]) -> Path:
    """Write a model's parameters and architecture to ``path/model.safetensors``, atomically.

    Args:
        model: A milkweed model.
        path: A folder, made if needed, or a file name ending in ``.safetensors``.

    Returns:
        The file written.

    Raises:
        TypeError: The model does not know its own config.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a milkweed model, which knows its config; got {type(model).__name__}")
    file = _file(path)
    metadata = {"format": "pt", "milkweed": __version__, "config": json.dumps(model.config)}
    with atomic_write(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary, metadata)
    return file


def load_pretrained(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Model:
    """Read a model that ``save_pretrained`` or a training run wrote. The file is read as data; no code runs from it.

    Args:
        path: The folder that holds ``model.safetensors``, or the file.
        device: Where the parameters go.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, not a milkweed model, or its parameters do not fit its config.
    """
    file = _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the folder or file that save_pretrained wrote")
    try:
        with safe_open(file, framework="pt", device=str(device)) as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{file} is corrupt or truncated ({error}); restore it or write it again") from error
    if "config" not in metadata:
        raise ValueError(f"{file} has no milkweed config in its metadata; it was not written by save_pretrained")
    try:
        config = json.loads(metadata["config"])
    except json.JSONDecodeError as error:
        raise ValueError(f"the config in {file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the config in {file} must be a mapping with a name and options; got {config!r}")
    with torch.device("meta"):
        model = build_model(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the parameters in {file} do not fit its config: {error}") from error
    return model.eval()


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE_NAME
