"""Checkpoint files: written whole or not at all, read as data and never as code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from milkweed._files import atomic_write, check_unpacked_size


class CheckpointError(ValueError):
    """A checkpoint file is missing, corrupt or truncated."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, replaced in one move within their folder and loaded with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What Lightning collected.
            path: The file to write or replace.
            storage_options: Not used.
        """
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: The file.
            map_location: Where tensors go.
            weights_only: Ignored: these files never hold code.

        Returns:
            The checkpoint.
        """
        return read_checkpoint(path, map_location)


def _no_file(path: Path) -> str:
    """What a path is that is no file, and what to name instead."""
    if not path.is_dir():
        return "does not exist; name a file in runs/NAME/checkpoints, or use auto"
    found = sorted([*path.glob("step-*.ckpt"), *path.glob("checkpoints/step-*.ckpt")])
    if not found:
        return "is a folder without checkpoints; name a file in runs/NAME/checkpoints, or use auto"
    return f"is a folder; name a file in it, such as its newest, {found[-1]}, or use auto with the run's --name"


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a training, checking that it is one and whole.

    Args:
        path: The file.
        map_location: Where tensors go.

    Returns:
        Lightning's checkpoint dictionary.

    Raises:
        CheckpointError: If the file is missing, corrupt, truncated or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} {_no_file(path)}")
    try:
        # The zip directory stands at the end of the file and every entry has a checksum: both tell truncation and rot,
        # which torch.load alone lets pass when only tensor bytes are hit.
        check_unpacked_size(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path} is corrupt at {damaged}; resume from another one")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        if path.suffix != ".ckpt":
            raise CheckpointError(
                f"checkpoint {path} is no checkpoint of a training; name a .ckpt file in runs/NAME/checkpoints, or use "
                "auto"
            ) from error
        raise CheckpointError(f"checkpoint {path} is corrupt or truncated; resume from another one") from error
    needed = {"state_dict", "global_step", "epoch"}
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        raise CheckpointError(f"checkpoint {path} is no training checkpoint: it lacks {', '.join(sorted(missing))}")
    return content
