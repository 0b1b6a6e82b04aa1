"""Files: written so that a reader never meets half of one, and read as data that may have been made to do harm."""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file that is read; indices of models with a hundred thousand tensors have a sixth of it."""
LARGEST_HEADER = 64 * 2**20
"""Bytes of a safetensors header that is read, with all of its metadata."""


class UnsafeFileError(ValueError):
    """A file asks for what files may not: code to be run, or a file outside of its folder."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends well.

    The folder of ``path`` is created if needed. If the block raises, ``path`` is as it was before and the temporary
    file is gone. No link is followed: the temporary file is new, under a name that cannot be foreseen, and where
    ``path`` is a link, the link is replaced and what it points to stays.

    Args:
        path: The file to write or replace.

    Yields:
        A path in the same folder, with the same suffix, to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def inside(folder: str | os.PathLike[str], name: object) -> Path:
    """Make a path of a name that a file holds, which is no path before that.

    Links are followed only as far as they stay in the folder, or where the hub's cache puts them: a file of
    ``snapshots/REVISION`` is a link to one in ``blobs``.

    Args:
        folder: The folder that the name is relative to.
        name: As the file has it, its parts divided by ``/``.

    Returns:
        The path, which need not exist.

    Raises:
        UnsafeFileError: It is no name, is absolute, has a part ``..``, or would leave the folder through a link.
    """
    folder = Path(folder)
    where = f"the name {name!r}, which a file of {folder} holds,"
    if not isinstance(name, str) or not name or "\0" in name:
        raise UnsafeFileError(f"{where} is no name of a file; expected one such as '1_Pooling'")
    # A backslash or a drive divides parts on Windows alone: such names mean different files on different machines.
    strange = "\\" in name or re.match(r"[A-Za-z]:", name) is not None
    if strange or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UnsafeFileError(f"{where} leaves that folder; expected a name inside of it")
    path = folder / name
    if not stays_inside(folder, path):
        raise UnsafeFileError(f"{where} is a link that leaves that folder; copy the file there if you trust it")
    return path


def stays_inside(folder: Path, path: Path) -> bool:
    """Tell whether a path leads out of a folder through a link.

    Args:
        folder: The folder.
        path: A path that begins with it.

    Returns:
        Whether what it leads to lies in the folder, or where the hub's cache keeps the folder's files.
    """
    home, found = folder.resolve(), path.resolve()
    if found.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and found.parent == home.parent.parent / "blobs"


def parse_json(text: str | bytes) -> Any:
    """Read JSON that others wrote.

    Args:
        text: The text.

    Returns:
        The value.

    Raises:
        ValueError: It is no JSON, is nested too deeply, or an object has one key twice, of which readers would choose
            differently.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError(f"{error}; it is nested too deeply") from None


def read_json_file(file: Path, most: int = LARGEST_JSON) -> Any:
    """Read a JSON file that others wrote.

    Args:
        file: The file.
        most: Bytes that it may have.

    Returns:
        The value.

    Raises:
        ValueError: It is larger, no UTF-8, or as of `parse_json`; the file is named.
    """
    with file.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file} has more than {most:,} bytes, too many for such a file")
    try:
        return parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def read_safetensors_header(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a safetensors file says about its tensors, and nothing of them.

    Args:
        file: A file.

    Returns:
        ``{"dtype": ..., "shape": ..., "data_offsets": ...}`` by name, and the metadata under ``__metadata__``. Whether
        they fit the file is for safetensors to check.

    Raises:
        ValueError: The header is truncated, larger than `LARGEST_HEADER`, no JSON, or has a name twice.
    """
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > LARGEST_HEADER and os.fstat(opened.fileno()).st_size > LARGEST_HEADER:
            raise ValueError(f"its header has {length:,} bytes; at most {LARGEST_HEADER:,} are read")
        text = opened.read(min(length, LARGEST_HEADER))
    if len(start) < 8 or len(text) < length:
        raise ValueError("its header is truncated")
    found = parse_json(text.decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"its header must be a mapping; got a {type(found).__name__}")
    return found


def check_unpacked_size(file: str | os.PathLike[str]) -> None:
    """Refuse a zip archive that unpacks to more than it is; files that ``torch.save`` writes are not compressed.

    Args:
        file: A file; one that is no archive passes.

    Raises:
        ValueError: It unpacks to more.
    """
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


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double!r} is there twice; keep one")
    return found


def _umask() -> int:
    """The permissions that new files lack; mkstemp makes private files, ours should be ordinary ones."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
