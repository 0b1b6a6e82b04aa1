"""Checkpoint files: written whole or not at all, read as data and never as code."""

import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from milkweed._disk import DiskFullError
from milkweed._files import atomic_write, check_unpacked_size

NAME = re.compile(r"step-(\d{9,18})\.ckpt")


class CheckpointError(ValueError):
    """A checkpoint file is missing, corrupt or truncated."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, replaced in one move within their folder and loaded with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; when the disk is full, the file that was there before stays."""
        try:
            with atomic_write(path) as temporary:
                torch.save(checkpoint, temporary)
        except DiskFullError as full:
            full.needed = tensor_bytes(checkpoint)
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; `weights_only` is ignored, as these files never hold code."""
        return read_checkpoint(path, map_location)


def tensor_bytes(content: Any) -> int:
    """Bytes of all tensors in nested containers, about the size of the file; shared memory counts once, as there."""
    found: dict[int, int] = {}
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, torch.Tensor):
            storage = each.untyped_storage()
            found[storage._cdata] = storage.nbytes()
        elif isinstance(each, dict | list | tuple):
            waiting.extend(each.values() if isinstance(each, dict) else each)
    return sum(found.values())


def step_in_name(path: Path) -> int | None:
    """The optimiser step in a checkpoint's name; None for a name such as that of the best."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_plain_file(path: Path) -> bool:
    """Whether a path is a file itself: no link to one, no folder, and no pipe, which would be waited for."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def list_checkpoints(folder: Path) -> list[Path]:
    """All paths named like a resumable checkpoint, the newest first; links and folders are among them."""
    try:
        found = [path for path in folder.iterdir() if step_in_name(path) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: (step_in_name(path), path.name), reverse=True)


def _no_file(path: Path) -> str:
    """Why a path is not a file, and what to name instead."""
    if not path.is_dir():
        what = "is not a plain file" if os.path.lexists(path) else "does not exist"
        return f"{what}; name a file in runs/NAME/checkpoints, or use auto"
    found = [each for where in (path / "checkpoints", path) for each in list_checkpoints(where)]
    if not found:
        return "is a folder without checkpoints; name a file in runs/NAME/checkpoints, or use auto"
    return f"is a folder; name a file in it, such as its newest, {found[0]}, or use auto with the run's name"


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a training; CheckpointError if it is missing, damaged or something else."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} {_no_file(path)}")
    try:
        _check_archive(path)
        content = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}; change its permissions") from error
    except Exception as error:  # whatever zipfile, pickle and torch make of damaged bytes
        if path.suffix != ".ckpt":
            raise CheckpointError(
                f"checkpoint {path} is not a checkpoint of a training; name a .ckpt file in "
                "runs/NAME/checkpoints, or use auto"
            ) from error
        raise CheckpointError(f"checkpoint {path} is corrupt or truncated; resume from another one") from error
    needed = {"state_dict", "global_step", "epoch"}
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        raise CheckpointError(f"checkpoint {path} is not a training checkpoint: it lacks {', '.join(sorted(missing))}")
    if not all(type(content[name]) is int for name in ("global_step", "epoch")):
        raise CheckpointError(f"checkpoint {path} is not a training checkpoint: its step and epoch are not numbers")
    return content


def _check_archive(path: Path) -> None:
    """Find damage that torch.load does not notice, when only the bytes of tensors are hit."""
    # The zip directory stands at the end of the file, and every entry has a checksum.
    with zipfile.ZipFile(path) as archive:
        try:
            check_unpacked_size(path)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} is corrupt: {error}") from error
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"checkpoint {path} is corrupt at {damaged}; resume from another one")
