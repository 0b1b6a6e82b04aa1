"""Folders of what can be made again: each is named by what it was made from, and is whole or missing."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Goes up with every change to how anything that is kept is made.
_FORMAT = 2
_LIST = "milkweed-cache.json"
# At both ends of a file, what is looked at: a copy that was broken off lacks its end, or has zeros there.
_ENDS = 2**20


def cache_folder(kind: str, *keys: str) -> Path:
    """The folder for what is made from the keys, below $MILKWEED_CACHE or ~/.cache/milkweed; it need not exist."""
    root = os.environ.get("MILKWEED_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "milkweed"
    name = hashlib.blake2b(json.dumps([_FORMAT, *keys]).encode(), digest_size=16).hexdigest()
    return Path(root).expanduser() / kind / name


def cached(folder: Path, make: Callable[[Path], None]) -> Path:
    """Let `make` write the files of a folder from `cache_folder`, unless they are there and whole."""
    if not _is_whole(folder):
        with new_folder(folder) as temporary:
            make(temporary)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` when the block ends well.

    If another process makes the folder meanwhile, it stays; one that is damaged goes.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise OSError(
            f"{folder.parent} cannot be written ({error.strerror}); name another folder with the environment variable "
            "MILKWEED_CACHE"
        ) from error
    aside = temporary.with_name(f"{temporary.name}-damaged")
    try:
        yield temporary
        (temporary / _LIST).write_text(json.dumps(_contents(temporary), sort_keys=True))
        if folder.is_dir() and not _is_whole(folder):
            folder.rename(aside)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds what was written into it."""
    try:
        return bool(json.loads((folder / _LIST).read_text()) == _contents(folder))
    except (OSError, ValueError):
        return False


def _contents(folder: Path) -> dict[str, list[int | str]]:
    """Size and checksum by the name of each file."""
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _checksum(file)]
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != _LIST
    }


def _checksum(file: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        found.update(content.read(_ENDS))
        content.seek(max(content.tell(), file.stat().st_size - _ENDS))
        found.update(content.read())
    return found.hexdigest()
