"""What the subjects of `milkweed plot` share."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from milkweed._suggest import UsageError

PATIENCE = 1.0  # seconds


def check_out(path: Path, example: str, suffix: str = ".png") -> None:
    """Refuse a file that cannot be written, before anything takes time."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"--out {path} must end in {suffix}; try --out {path.with_suffix(suffix)}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; choose a file, e.g. --out {path / example}")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        state = "is not writable" if existing.is_dir() else "is a file, not a folder"
        raise UsageError(f"--out {path} cannot be written: {existing} {state}; choose another file")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report a failure to write as a matter of `--out`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror or error}; choose another file") from error


@contextmanager
def late_progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show a progress bar on a terminal if the block takes long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task("", total=total)
    timer = threading.Timer(PATIENCE, progress.start)
    timer.start()
    try:
        yield lambda description, done: progress.update(task, description=description, completed=done)
    finally:
        timer.cancel()
        timer.join()
        if progress.live.is_started:
            progress.stop()
