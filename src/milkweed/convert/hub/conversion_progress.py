"""How far a conversion is, for those who watch it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class FolderError(ValueError):
    """A folder, a text or a place that a conversion cannot use."""


class Progress:
    """Shows nothing, and warns as Python does; a subclass shows what it hears of."""

    def begin(self, text: str) -> None:
        """Hear that a step of unknown length starts."""

    def count(self, text: str, done: int, total: int) -> None:
        """Hear how far a step is: so many layers done, of so many."""

    def read(self, batches: Iterable[T], total: int) -> Iterator[T]:
        """Follow a pass over batches."""
        yield from batches

    def warn(self, text: str) -> None:
        """Hear what a user should know."""
        warnings.warn(text, stacklevel=3)
