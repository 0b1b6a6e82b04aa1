"""What a conversion is doing: live on a terminal, else as plain lines."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from milkweed.cli.console import complain
from milkweed.convert.hub.conversion_progress import Progress

# Seconds between two lines of one step in a log.
PATIENCE = 5.0


class Steps(Progress):
    """A line for the step at hand and, while texts are read, one for those."""

    def __init__(self, progress: Bars) -> None:
        self.progress = progress
        self.step = progress.add_task("", total=None)
        self.reading = progress.add_task("  reading texts", total=None, visible=False)

    def begin(self, text: str) -> None:
        """Start a step of unknown length."""
        self.progress.reset(self.step, description=escape(text), total=None)
        self.progress.update(self.reading, visible=False)

    def count(self, text: str, done: int, total: int) -> None:
        """Say how far a step is."""
        self.progress.update(self.step, description=escape(text), completed=done, total=total)

    def read(self, batches: Iterable, total: int) -> Iterator:
        """Show how far a pass over batches is."""
        self.progress.reset(self.reading, total=total, visible=True)
        for batch in batches:
            yield batch
            self.progress.advance(self.reading)
        self.progress.update(self.reading, visible=False)

    def warn(self, text: str) -> None:
        """Print what a user should know."""
        self.progress.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


class Lines(Progress):
    """A line on standard error for every step, and one every few seconds while it goes on: for logs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.start = self.last = clock()
        self.step = ""

    def begin(self, text: str) -> None:
        """Write that a step starts."""
        if text != self.step:
            self.step = text
            self._write(text)

    def count(self, text: str, done: int, total: int) -> None:
        """Write how far a step is, if the last line is old."""
        if self.clock() - self.last >= PATIENCE:
            self._write(f"{text}: {done:,} of {total:,} ({done / max(1, total):.0%})")

    def read(self, batches: Iterable, total: int) -> Iterator:
        """Write how far a pass over batches is, if the last line is old."""
        for done, batch in enumerate(batches, 1):
            yield batch
            self.count("  reading texts", done, total)

    def warn(self, text: str) -> None:
        """Write what a user should know."""
        complain(f"warning: {text}")

    def _write(self, text: str) -> None:
        self.last = self.clock()
        complain(f"[{_clock(self.last - self.start)}] {text}")


@contextmanager
def watch() -> Iterator[Progress]:
    """Show steps on standard error while the block runs: live on a terminal, else as lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        yield Steps(progress)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
