"""Files of tensors with a description: safetensors, read as data."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIX = ".safetensors"


def file_in(path: str | os.PathLike[str], name: str) -> Path:
    """Find the file that a path stands for.

    Args:
        path: A folder, or a file name ending in ``.safetensors``.
        name: The file's name in a folder.

    Returns:
        The file, which need not exist.
    """
    path = Path(path)
    return path if path.suffix == SUFFIX else path / name


def read_tensors(
    file: Path, writer: str, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all of a file.

    Args:
        file: The file.
        writer: The function that writes such files, for messages.
        device: Where the tensors go.

    Returns:
        The tensors by name, and the file's metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated or no safetensors file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the folder or file that {writer} wrote")
    try:
        with safe_open(file, framework="pt", device=str(device)) as stored:
            names = stored.keys()
            return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is corrupt or truncated ({error}); restore it or write it again") from error


def written_by_milkweed(file: Path) -> bool:
    """Tell this library's files from those of others.

    Args:
        file: An existing file.

    Returns:
        Whether its metadata names milkweed; False for a file that cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            return "milkweed" in (stored.metadata() or {})
    except SafetensorError:
        return False
