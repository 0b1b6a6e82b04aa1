"""One training at a time in the folder of a run."""

import errno
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where runs are not locked
    fcntl = None

LOCK = ".lock"
# A link is not followed, and a pipe is not waited for: the folder may come from someone else.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class RunInUseError(OSError):
    """Another process trains in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder while the block runs.

    The file `.lock` names the process, and the system's lock on it ends with the process, however that ends: a file
    that a killed one leaves is taken over. On file systems without locks nothing is locked. A link, also a hard one, is
    refused, as a foreign folder could empty other files by it.
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
        handle = _open(path)
        if not _lock(handle):
            owner = os.read(handle, 500).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise RunInUseError(
                f"run {path.parent} is in use by {owner}; wait until it is done or stop it, or start a run "
                "under another name"
            )
        # Whoever had it may have removed the file after it was opened here.
        if _still_there(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)


def _open(path: Path) -> int:
    try:
        handle = os.open(path, _FLAGS, 0o666)
    except OSError as error:
        if path.is_symlink() or path.is_dir() or error.errno == errno.ENXIO:
            raise _no_lock(path) from error
        raise
    found = os.fstat(handle)
    # Without O_NOFOLLOW, on Windows, the link shows by its name.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or path.is_symlink():
        os.close(handle)
        raise _no_lock(path)
    return handle


def _no_lock(path: Path) -> OSError:
    return OSError(
        f"run {path.parent} cannot be locked: {path} is a link or not a plain file; milkweed never makes one; look "
        "where it comes from, and delete it"
    )


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
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
