"""Texts that calibration does not see, and what a metric is called with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SHARE = 0.1


class HeldOut(list[dict[str, Any]]):
    """Batches of held-out texts, each what the model is called with: ``model(**batch)``.

    Args:
        batches: Mappings of names to tensors, those of the longest texts first; none if there are no texts.
        texts: The texts themselves, in the order in which they were given.
        tokenizer: The model's tokenizer, or None where it has none or needs none.
        file: What was given as ``metric_data``, if that is a file.

    Example:
        >>> held_out = mw.convert.HeldOut([{"input_ids": torch.ones(1, 4, dtype=torch.long)}], ["a text"])
        >>> len(held_out), held_out.texts
        (1, ('a text',))
    """

    def __init__(
        self,
        batches: Iterable[dict[str, Any]] = (),
        texts: Sequence[str] = (),
        tokenizer: Any = None,
        file: Path | None = None,
    ) -> None:
        super().__init__(batches)
        self.texts, self.tokenizer, self.file = tuple(texts), tokenizer, file


def split(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Part texts in those to calibrate on and those held out.

    A text belongs to one side by what it says: in another order, among others and in another file it is on the same
    side, and so are its copies. If one side would be empty, all are there to calibrate on.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        sides[_is_held_out(text, share)].append(text)
    return sides if all(sides) else (list(texts), [])


def _is_held_out(text: str, share: float) -> bool:
    digest = hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
