"""How a sweep shows that it moves: a live table in a terminal, a line for each event elsewhere."""

from contextlib import AbstractContextManager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from milkweed.cli.sweep.processes import Child
from milkweed.cli.tables import duration


class Display(AbstractContextManager):
    """What runs, what is done and what failed, of so many runs."""

    def __init__(self, console: Console, total: int, skipped: int) -> None:
        self.console, self.total, self.skipped = console, total, skipped
        self.finished = self.failed = 0
        self.seen: set[str] = set()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        if skipped:
            self.say(f"{skipped} of {total} runs are finished already.")

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line, above the live table if there is one."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def ended(self, child: Child, state: str) -> None:
        """Report a run that has ended: finished or failed."""
        name, took = child.combination.name, duration(child.seconds)
        if state == "finished":
            self.finished += 1
            self.say(f"[{self.done}/{self.total}] {name}: finished in {took}  {_validation(child)}")
        else:
            self.failed += 1
            self.say(
                f"[{self.done}/{self.total}] {name}: {state} after {took}: {child.error()}; see {child.log}", "red"
            )

    @property
    def done(self) -> int:
        """Runs that need no more waiting."""
        return self.skipped + self.finished + self.failed

    def running(self, children: list[Child]) -> None:
        """Show what runs."""
        if self.live:
            self.live.update(self._table(children))
            return
        for child in children:
            if child.combination.name not in self.seen:
                self.seen.add(child.combination.name)
                self.say(f"{child.combination.name}: started")

    def _table(self, children: list[Child]) -> Group:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("running", overflow="fold")
        for head in ("epoch", "time"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("metrics", overflow="ellipsis", no_wrap=True)
        for child in children:
            name, epoch = escape(child.combination.name), child.progress()[0]
            table.add_row(name, epoch, duration(child.seconds), _validation(child))
        failed = f", {self.failed} failed" if self.failed else ""
        waiting = self.total - self.done - len(children)
        return Group(Text(f"{self.done} of {self.total} runs done{failed}, {waiting} waiting"), table)


def _validation(child: Child) -> str:
    """The validation metrics of the last epoch."""
    return "  ".join(part for part in child.progress()[1].split("  ") if part.startswith("val_"))
