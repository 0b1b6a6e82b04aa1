"""One training at a time in the folder of a run."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where runs are not locked
    fcntl = None

LOCK = ".lock"


class RunInUseError(OSError):
    """Another process trains in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder while the block runs.

    The file `.lock` names the process, and is locked in the eyes of the system, which frees it when the process ends,
    however it ends: a file that a killed one leaves is taken over. On file systems that know no locks there is none.

    Args:
        folder: An existing folder.

    Yields:
        Nothing.

    Raises:
        RunInUseError: Another process has it.
    """
    path = folder / LOCK
    handle = _take(path)
    try:
        yield
    finally:
        if _still_there(handle, path):
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle):
            owner = os.read(handle, 500).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise RunInUseError(
                f"run {path.parent} is in use by {owner}; wait until it is done or stop it, or start a run of its own "
                "under another --name"
            )
        # Whoever had it may have removed the file after it was opened here.
        if _still_there(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock a file; False if another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def _still_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
