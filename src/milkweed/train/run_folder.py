"""The folder of a run: what lies where, and how it is found, created and read."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from milkweed._files import atomic_write
from milkweed.train.checkpoint_io import CheckpointError, read_checkpoint
from milkweed.train.run_lock import LOCK


class RunFolder:
    """One run's files.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.results = self.path / "results.json"
        self.learning_curves = self.path / "learning_curves.png"
        self.confusion_matrix = self.path / "confusion_matrix.png"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @classmethod
    def create(cls, out: Path, name: str, *, numbered: bool) -> "RunFolder":
        """Make a new folder, never touching one that exists.

        Args:
            out: Folder of all runs; created if missing.
            name: Name of the run.
            numbered: If the name is taken, use `name-2`, `name-3`, … instead of refusing.

        Returns:
            The new, empty run.

        Raises:
            FileExistsError: If the name is taken and `numbered` is false.
        """
        out.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = out / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                if not numbered:
                    raise FileExistsError(
                        f"{folder} exists already and a run is never overwritten; choose another --name, "
                        "or continue it with --resume auto"
                    ) from None
                number += 1
            else:
                return cls(folder)

    @classmethod
    def newest(cls, out: Path, name: str) -> "RunFolder | None":
        """The last run of a name, counting `name`, `name-2`, `name-3`, ….

        Args:
            out: Folder of all runs.
            name: The name without its number.

        Returns:
            The run with the highest number, or None if there is none.
        """
        numbers = [1] if (out / name).is_dir() else []
        for folder in out.glob(f"{name}-*"):
            suffix = folder.name.removeprefix(f"{name}-")
            if suffix.isdecimal() and folder.is_dir():
                numbers.append(int(suffix))
        if not numbers:
            return None
        number = max(numbers)
        return cls(out / (name if number == 1 else f"{name}-{number}"))

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration.

        Returns:
            A nested dictionary.

        Raises:
            FileNotFoundError: If this is no folder of a run.
            ValueError: If the file is damaged.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is no run: it has no config.yaml; name a folder such as runs/digits")
        try:
            content = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.config} is damaged ({error}); restore it or start a new run") from error
        missing = [
            name
            for name in ("data", "model", "task", "trainer")
            if not isinstance(content, dict) or name not in content
        ]
        if missing:
            raise ValueError(f"{self.config} is damaged: it lacks {', '.join(missing)}; restore it or start a new run")
        return content

    def write_config(self, text: str) -> None:
        """Write the resolved configuration.

        Args:
            text: The YAML.
        """
        with atomic_write(self.config) as temporary:
            temporary.write_text(text)

    def read_environment(self) -> dict[str, Any]:
        """The description of recipe and machine.

        Returns:
            What `write_environment` was given, or an empty dictionary.

        Raises:
            ValueError: If the file is damaged.
        """
        if not self.environment.is_file():
            return {}
        try:
            content = json.loads(self.environment.read_text())
        except ValueError as error:
            raise ValueError(f"{self.environment} is damaged ({error}); delete it, nothing depends on it") from error
        return content if isinstance(content, dict) else {}

    def write_environment(self, content: dict[str, Any]) -> None:
        """Write the description of recipe and machine.

        Args:
            content: JSON-able.
        """
        write_json(self.environment, content)

    def checkpoint_files(self) -> list[Path]:
        """All resumable checkpoints, newest first.

        Returns:
            Paths by falling step.
        """
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    def newest_checkpoint(self, warn: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that can be read.

        Args:
            warn: Called with a sentence on every damaged checkpoint that is skipped.

        Returns:
            Its path, or None if nothing has been saved yet.

        Raises:
            CheckpointError: If there are checkpoints but none can be read.
        """
        files = self.checkpoint_files()
        for path in files:
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                warn(f"skipped: {error}")
            else:
                return path
        if files:
            raise CheckpointError(
                f"none of the {len(files)} checkpoints in {self.checkpoints} can be read; "
                "start again under another --name"
            )
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move.

    Args:
        path: The file to write or replace.
        content: JSON-able.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, by trying, without leaving anything behind.

    Args:
        folder: The folder to be used; if it does not exist, its nearest existing parent is tried.

    Raises:
        PermissionError: If nothing can be created there.
        NotADirectoryError: If a part of the path is a file.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(f"run folder {folder} cannot be created: {nearest} is a file; choose another --out")
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=".milkweed-"))
    except OSError as error:
        raise PermissionError(
            f"run folder {folder} cannot be written: {nearest}: {error.strerror}; "
            "choose another --out or change its permissions"
        ) from error


def is_empty(folder: Path) -> bool:
    """Whether a path is a folder with nothing in it, save a lock.

    Args:
        folder: Any path.

    Returns:
        False for files, and for folders that hold anything else.
    """
    return folder.is_dir() and all(path.name == LOCK for path in folder.iterdir())
