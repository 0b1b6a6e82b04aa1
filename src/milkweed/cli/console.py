"""Texts in a terminal without any extra installed; tables of results are rich's."""

import shutil
import sys
import textwrap
from collections.abc import Iterable


def echo(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")


def complain(text: str, mark: str = "") -> None:
    """Write a line on standard error, its mark in red on a terminal."""
    sys.stderr.write(f"\033[1;31m{mark}\033[0m{text}\n" if mark and sys.stderr.isatty() else f"{mark}{text}\n")


def in_columns(rows: Iterable[tuple[str, str]], indent: str = "") -> None:
    """Write names, in bold on a terminal, and beside each what it is, folded to the terminal's width."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    gap = len(indent) + width + 3
    for name, text in rows:
        lines = textwrap.wrap(text, max(20, shutil.get_terminal_size().columns - gap)) or [""]
        shown = f"\033[1m{name}\033[0m" if sys.stdout.isatty() else name
        echo(f"{indent}{shown}{' ' * (width - len(name) + 3)}{lines[0]}".rstrip())
        for line in lines[1:]:
            echo(" " * gap + line)
