"""Full disks, reported in one sentence, whether Python, torch, safetensors or an image library meets them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space there, or choose a folder on another disk"),
    getattr(errno, "EDQUOT", -1): ("the disk quota is used up", "free some space, or choose a folder on another disk"),
    errno.EFBIG: (
        "the file would be larger than the system or a limit allows",
        "raise the limit (ulimit -f), or choose a folder on another disk",
    ),
}
_PROBE = 2**20


class DiskFullError(OSError):
    """A file could not be written for want of space; ``kept`` is a sentence on what has been saved earlier, if any."""

    def __init__(self, code: int, path: str | os.PathLike[str], needed: int | None = None, kept: str = "") -> None:
        super().__init__(code, os.strerror(code), os.fspath(path))
        self.needed, self.kept = needed, kept

    def __str__(self) -> str:
        code = self.errno or errno.ENOSPC
        cause, fix = _CAUSES.get(code, _CAUSES[errno.ENOSPC])
        path = Path(self.filename)
        sizes = [] if self.needed is None else [f"{megabytes(self.needed)} needed"]
        with suppress(OSError):  # the folder may be gone by now
            sizes.append(f"{megabytes(shutil.disk_usage(path.parent).free)} free")
        room = f"; {', '.join(sizes)} in {path.parent}" if sizes else ""
        kept = f". {self.kept}" if self.kept else ""
        return f"{path} cannot be written: {cause} ({self.strerror}{room}); {fix}{kept}"


def megabytes(count: int) -> str:
    """Write a number of bytes for people: ``1.5 MB``."""
    return f"{count / 1e6:,.1f} MB"


def full_disk(error: BaseException, path: Path, written: Path | None) -> DiskFullError | None:
    """The error to raise where a failure to write came from a full disk; None for any other failure.

    torch and image libraries report it in words of their own, without the system's number. Then a little more is
    written to the unfinished file, where there is one: that fails too if the disk is full.
    """
    if isinstance(error, DiskFullError):
        return error
    code = _number(error)
    if code is None and written is not None and _may_hide_it(error):
        code = _probe(written)
    return DiskFullError(code, path) if code in _CAUSES else None


def _number(error: BaseException) -> int | None:
    """The system's number in an error, or in its text as Rust has it; that of a full disk in those it came from too."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    named = re.search(r"\(os error (\d+)\)", str(error))
    if named:
        return int(named[1])
    came_from = error.__cause__ or error.__context__
    code = _number(came_from) if came_from is not None else None
    return code if code in _CAUSES else None


def _may_hide_it(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | OSError | SafetensorError)


def _probe(written: Path) -> int | None:
    try:
        with written.open("ab", buffering=0) as file:
            left = _PROBE
            while left:  # a first write may be cut short, the next one says why
                left -= file.write(bytes(left))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None
