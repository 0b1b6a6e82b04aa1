"""What the command knows about its place to write: the functions are those of `milkweed.convert.hub.destination`."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from milkweed.convert.hub.destination import check_out, copy_side_files

__all__ = ["check_out", "copy_side_files", "unwound_when_ended"]


@contextmanager
def unwound_when_ended() -> Iterator[None]:
    """Let SIGTERM unwind the block, as Ctrl-C does, so that nothing half done is left."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)  # as a shell reports it
