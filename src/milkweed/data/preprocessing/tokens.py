"""Tokens as raw inputs: whole numbers, and the bytes of texts."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkweed.data.preprocessing.arrays import read_arrays
from milkweed.data.preprocessing.base import Preprocessing, Sample, check_counts
from milkweed.data.preprocessing.texts import Texts, check_no_rate


class Tokens(Preprocessing):
    """Sequences of whole numbers below ``vocabulary``, (L,) or many of them, (N, L).

    Args:
        vocabulary: Number of different tokens.
        length: L, if every sequence has so many steps.
        class_names: Names of the classes.
    """

    def __init__(self, vocabulary: int, length: int | None = None, class_names: Iterable[str] | None = None) -> None:
        super().__init__(class_names, vocabulary=vocabulary, length=length)
        check_counts(vocabulary=vocabulary, length=length)
        self.vocabulary, self.length = vocabulary, length

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give every sequence of a source."""
        check_no_rate(rate)
        for name, values in read_arrays(source):
            many = values[None] if values.ndim == 1 else values
            if many.ndim != 2 or 0 in many.shape:
                raise ValueError(f"{name} must be tokens (L,) or (N, L); got shape {values.shape}")
            if self.length not in {None, many.shape[1]}:
                raise ValueError(f"{name} has {many.shape[1]} tokens; the model was trained on {self.length}")
            for number, each in enumerate(many):
                where = f"{name}[{number}]" if len(many) > 1 else name
                yield where, {"inputs": self._checked(where, each)}

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Check some tokens."""
        return self._checked("chunk", np.asarray(chunk.cpu() if isinstance(chunk, Tensor) else chunk).reshape(-1))

    def _checked(self, name: str, values: np.ndarray) -> Tensor:
        # Tables hold whole numbers as floating-point ones.
        whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool((values == np.floor(values)).all()))
        if not whole or not len(values):
            raise ValueError(f"{name} must be whole numbers, one for each token; got {values.dtype}")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= self.vocabulary:
            raise ValueError(f"{name}: tokens must lie in 0…{self.vocabulary - 1}, as in training; got {low}…{high}")
        return torch.from_numpy(values.astype(np.int64))


class Bytes(Texts):
    """Texts as the tokens of their UTF-8 bytes; see `Texts`.

    Args:
        field: Name of the column in tables.
        length: Bytes to which longer texts are cut; None for none.
        class_names: Names of the classes.
    """

    def __init__(self, field: str, length: int | None = None, class_names: Iterable[str] | None = None) -> None:
        super().__init__(class_names, field=field, length=length)
        check_counts(length=length)
        self.fields, self.length = [field], length

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give the bytes of every text."""
        check_no_rate(rate)
        for name, (text,) in self.texts(source):
            if not text:
                raise ValueError(f"{name!r:.60}: the text is empty")
            yield name, {"inputs": as_bytes(text)[: self.length]}


def as_bytes(text: str) -> Tensor:
    """The UTF-8 bytes of a text, (L,)."""
    return torch.from_numpy(np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64))
