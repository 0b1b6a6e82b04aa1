"""What a conversion is doing, live on a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from milkweed.convert.hub.conversion_progress import Progress


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


@contextmanager
def watch() -> Iterator[Steps]:
    """Show steps on standard error while the block runs; only warnings if that is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield Steps(progress)
