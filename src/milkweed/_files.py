"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milkweed._disk import full_disk


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends well.

    The folder of ``path`` is created if needed. If the block raises, ``path`` is as it was before and the temporary
    file is gone. A link at ``path`` is replaced, never followed.

    Args:
        path: The file to write or replace.

    Yields:
        A path in the same folder, with the same suffix, to write to.

    Raises:
        DiskFullError: The disk is full, whatever the block made of it.
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


def _umask() -> int:
    """The permissions that new files lack; mkstemp makes private files, ours should be ordinary ones."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
