"""Being told how far a conversion is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class FolderError(ValueError):
    """A folder, a text or a place that a conversion cannot use."""


class Progress:
    """Says nothing, and warns as Python does; a subclass shows what it is told."""

    def begin(self, text: str) -> None:
        """Hear that a step of unknown length starts.

        Args:
            text: What it is.
        """

    def tell(self, text: str, done: int, total: int) -> None:
        """Hear how far a step is.

        Args:
            text: What it is.
            done: Layers done.
            total: Layers in all.
        """

    def read(self, batches: Iterable[T], total: int) -> Iterator[T]:
        """Follow a pass over batches.

        Args:
            batches: What is passed on.
            total: How many there are.

        Yields:
            The batches.
        """
        yield from batches

    def warn(self, text: str) -> None:
        """Hear what a user should know.

        Args:
            text: The warning.
        """
        warnings.warn(text, stacklevel=3)
