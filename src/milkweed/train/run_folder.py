"""The folder of a run: what lies where, and how it is found, created and read."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from milkweed._files import atomic_write
from milkweed.train import run_config
from milkweed.train.checkpoint_io import CheckpointError, is_plain_file, list_checkpoints, read_checkpoint
from milkweed.train.checkpoints import own_checkpoints
from milkweed.train.run_lock import LOCK
from milkweed.train.trusted import check_classes


class RunFolder:
    """One run's files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self.preprocessing = self.path / "preprocessing.json"
        self.calibration = self.path / "calibration.json"
        self.results = self.path / "results.json"
        self.learning_curves = self.path / "learning_curves.png"
        self.confusion_matrix = self.path / "confusion_matrix.png"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @classmethod
    def create(cls, out: Path, name: str, *, numbered: bool) -> "RunFolder":
        """Make a new folder; if the name is taken, refuse it, or if `numbered` use `name-2`, `name-3`, …."""
        check_name(name)
        out.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = out / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                if not numbered:
                    raise FileExistsError(
                        f"{folder} exists already and a run is never overwritten; choose another name, or resume it"
                    ) from None
                number += 1
            else:
                return cls(folder)

    @classmethod
    def newest(cls, out: Path, name: str) -> "RunFolder | None":
        """The last run of a name, counting `name`, `name-2`, `name-3`, …; None if there is none."""
        check_name(name)
        numbers = [1] if (out / name).is_dir() else []
        # Compared, not globbed: names may hold brackets and stars.
        for folder in out.iterdir() if out.is_dir() else ():
            head, _, suffix = folder.name.rpartition("-")
            if head == name and suffix.isascii() and suffix.isdecimal() and folder.is_dir():
                numbers.append(int(suffix))
        if not numbers:
            return None
        number = max(numbers)
        return cls(out / (name if number == 1 else f"{name}-{number}"))

    def read_config(self, *, trust: bool = False, given: Collection[str] = ()) -> run_config.StoredConfig:
        """The resolved configuration; a class of unknown origin is refused.

        With ``trust`` it may name classes of any origin, and in any case those whose import paths are ``given``.
        """
        if not self.config.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run: it has no config.yaml; name a folder such as runs/digits"
            )
        config = run_config.read_config(self.config)
        if not trust:
            check_classes(config, self.config, given)
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration."""
        run_config.write_config(self.config, config)

    def read_environment(self, warn: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """The description of recipe and machine; empty, with a warning, if the file is damaged."""
        if not self.environment.is_file():
            return {}
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            warn(f"{self.environment} is damaged ({error}); what it said of earlier trainings is lost")
            return {}
        return content if isinstance(content, dict) else {}

    def write_environment(self, content: dict[str, Any]) -> None:
        """Write the description of recipe and machine."""
        write_json(self.environment, content)

    def checkpoint_files(self) -> list[Path]:
        """All resumable checkpoints, newest first."""
        return own_checkpoints(self.checkpoints)

    def check_own(self) -> None:
        """Refuse to train in a folder whose checkpoints lie elsewhere: others would be replaced and removed.

        The run's folder itself may be a link, which its owner made; what is in it may not lead out of it.
        """
        if self.checkpoints.is_symlink():
            raise OSError(
                f"{self.checkpoints} is a link to {self.checkpoints.resolve()}: a run keeps its files in its own "
                f"folder; move them there, or make {self.path} itself the link"
            )
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise OSError(f"{self.checkpoints} is a file, where a run keeps its checkpoints; move it away")

    def newest_checkpoint(self, warn: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that can be read, or None; `warn` is called for every damaged one."""
        files = list_checkpoints(self.checkpoints)
        for path in files:
            if not is_plain_file(path):
                warn(f"skipped: checkpoint {path} is a link or not a file; no training makes such a thing; delete it")
                continue
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                warn(f"skipped: {error}")
            else:
                return path
        if files:
            raise CheckpointError(
                f"none of the {len(files)} checkpoints in {self.checkpoints} can be read; "
                "start again under another name"
            )
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one move; numbers that are not finite become null."""
    text = json.dumps(finite_numbers(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def finite_numbers(content: Any) -> Any:
    """A copy with null for NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite_numbers(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def check_name(name: str) -> None:
    """Refuse a run's name that is not the name of one folder; brackets and stars stand for themselves."""
    if not name.strip(". ") or any(each in "/\\" or ord(each) < 32 for each in name):
        raise ValueError(f"name={name!r} must be the name of one folder, without slashes; out says where it is")


def check_writable(folder: Path) -> None:
    """Refuse a folder in which, or in whose nearest existing parent, nothing can be created, by trying."""
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(f"run folder {folder} cannot be created: {nearest} is a file; choose another folder")
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=".milkweed-"))
    except OSError as error:
        raise PermissionError(
            f"run folder {folder} cannot be written: {nearest}: {error.strerror}; "
            "choose another folder or change its permissions"
        ) from error


def is_empty(folder: Path) -> bool:
    """Whether a path is a folder with nothing in it, except a lock."""
    return folder.is_dir() and all(path.name == LOCK for path in folder.iterdir())
