"""Files: written so that a reader never meets half of one, and read as data that may have been made to do harm."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from milkweed import _json
from milkweed._disk import full_disk

LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file that is read; indices of models with a hundred thousand tensors have a sixth of it."""


def path_text(name: str, value: object) -> str:
    """A path, or the name of something on the hub, as a string; all else is refused by the argument's name."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path; got {type(value).__name__}")
    return str(os.fspath(value))


class UnsafeFileError(ValueError):
    """A file asks for what files may not: code to be run, or a file outside of its folder."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``, with its suffix, that takes its place when the block ends well.

    The folder of ``path`` is created if needed. If the block raises, ``path`` is as it was before and the temporary
    file is gone. No link is followed: the temporary file is new, under a name that cannot be foreseen, and where
    ``path`` is a link, the link is replaced and what it points to stays.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except Exception as error:
        full = full_disk(error, path, temporary)
        if full is None or full is error:
            raise
        raise full from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def inside(folder: str | os.PathLike[str], name: object) -> Path:
    """Make a path of a name that a file in a folder holds, its parts divided by ``/``.

    Links are followed only as far as they stay in the folder, or where the hub's cache puts them: a file of
    ``snapshots/REVISION`` is a link to one in ``blobs``. Any other name is an `UnsafeFileError`; the path need not
    exist.
    """
    folder = Path(folder)
    where = f"the name {name!r}, which a file of {folder} holds,"
    if not isinstance(name, str) or not name or "\0" in name:
        raise UnsafeFileError(f"{where} is not the name of a file; expected one such as '1_Pooling'")
    # A backslash or a drive divides parts on Windows alone: such names mean different files on different machines.
    strange = "\\" in name or re.match(r"[A-Za-z]:", name) is not None
    if strange or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UnsafeFileError(f"{where} leaves that folder; expected a name inside of it")
    path = folder / name
    if not stays_inside(folder, path):
        raise UnsafeFileError(f"{where} is a link that leaves that folder; copy the file there if you trust it")
    return path


def stays_inside(folder: Path, path: Path) -> bool:
    """Whether a path leads to a place in its folder, or to where the hub's cache keeps the folder's files."""
    home, found = folder.resolve(), path.resolve()
    if found.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and found.parent == home.parent.parent / "blobs"


def read_json_file(file: Path, most: int = LARGEST_JSON) -> Any:
    """Read a JSON file that others wrote, of a bounded size; a ValueError names the file."""
    with file.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file} has more than {most:,} bytes, too many for such a file")
    try:
        return _json.read(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def check_unpacked_size(file: str | os.PathLike[str]) -> None:
    """Refuse a zip archive that unpacks to more than it is; files that ``torch.save`` writes are not compressed."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    packed = os.path.getsize(file)
    if size > packed:
        raise ValueError(
            f"{os.fspath(file)} has {packed:,} bytes but unpacks to {size:,}; torch.save does not compress, write it "
            "again with that"
        )


def _umask() -> int:
    """The permissions that new files lack; mkstemp makes private files, ours should be ordinary ones."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
