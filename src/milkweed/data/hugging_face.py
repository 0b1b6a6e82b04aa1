"""Data sets of the library `datasets`, and local tables, with one column to read and one to learn."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed.data.arrays import standardised, without_padding
from milkweed.data.base import SPLITS, SequenceData
from milkweed.data.batches import ArrayDataset
from milkweed.data.preprocessing import Bytes, Images, Preprocessing, Recordings, Signals
from milkweed.data.preprocessing.tokens import as_bytes
from milkweed.data.sounds import read_sound
from milkweed.data.splits import by_hash, check_classes, check_shares
from milkweed.data.tables import Row, read_tables

BYTES = 257
"""Tokens of a text: its UTF-8 bytes, and the last one for what could not be read as one."""


class HuggingFace(SequenceData):
    """A data set of the Hugging Face hub or local tables: one column is read, another is learned.

    What a column holds decides how it is read: lists of numbers, or of lists of them, are sequences of features; images
    are pixels in reading order; recordings are samples; texts are sequences of their UTF-8 bytes, as tokens. Sequences
    may have different lengths. Targets that are whole numbers or texts are classes, others numbers.

    Args:
        source: A name on the hub, a folder that `datasets` reads, or a file or folder of .csv, .tsv, .json and .jsonl.
        inputs: The column that is read.
        targets: The column that is learned.
        config: The configuration of a data set that has several.
        max_length: Longer sequences are cut to this, from their start; by default the longest decides.
        val: Share of the training rows for validation, where the data have no such split.
        test: The same for the test.
        batch_size: Samples per optimiser step over all processes together.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
    """

    @checked(but=("source",))
    def __init__(
        self,
        source: str,
        inputs: str,
        targets: str,
        config: str | None = None,
        max_length: int | None = None,
        val: float = 0.1,
        test: float = 0.1,
        batch_size: int = 64,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed, limit)
        check_shares(val, test)
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length={max_length} must be at least 1")
        self.source, self.config, self.max_length = path_text("source", source), config, max_length
        self.inputs, self.targets, self.val, self.test = inputs, targets, val, test
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        self._first: tuple[str, int | None] | None = None  # kind and sample rate of all rows

    @property
    def length(self) -> int:  # type: ignore[override]
        """Steps of the longest sequence."""
        return self.split("train").inputs.shape[1]

    @property
    def d_input(self) -> int:  # type: ignore[override]
        """Features of each step, or the number of different tokens."""
        return BYTES if self.split("train").inputs.ndim == 2 else self.split("train").inputs.shape[2]

    def load(self) -> dict[str, ArrayDataset]:
        """Read the rows, and make sequences of one length of them."""
        parts = self._parts(read_tables(self.source, (self.inputs, self.targets), self.config))
        sequences = {
            name: [self._sequence(name, place, row[self.inputs]) for place, row in enumerate(rows)]
            for name, rows in parts.items()
        }
        self.tokens = sequences["train"][0].ndim == 1
        targets = self._targets({name: [row[self.targets] for row in rows] for name, rows in parts.items()})
        longest = max(len(each) for rows in sequences.values() for each in rows)
        padded = {name: self._padded(name, rows, longest) for name, rows in sequences.items()}
        if not self.tokens:
            self.mean, self.std = standardised(*padded["train"])
            padded = {
                name: (without_padding((inputs - self.mean) / self.std, lengths), lengths)
                for name, (inputs, lengths) in padded.items()
            }
        return {name: ArrayDataset(inputs, targets[name], lengths) for name, (inputs, lengths) in padded.items()}

    def _parts(self, tables: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
        """The three splits, from those of the data; a training split makes what is missing."""
        found = {"val" if name == "validation" else name: rows for name, rows in tables.items()}
        if "train" not in found:
            raise ValueError(
                f"data.source={self.source} has the splits {', '.join(sorted(tables))}; one must be called train"
            )
        names = [str(place) for place in range(len(found["train"]))]
        shares = {"val": 0.0 if "val" in found else self.val, "test": 0.0 if "test" in found else self.test}
        places = by_hash(names, **shares)
        for name in SPLITS[1:]:
            if name not in found:
                found[name] = [row for row, place in zip(found["train"], places, strict=True) if place == name]
        found["train"] = [row for row, place in zip(found["train"], places, strict=True) if place == "train"]
        for name in SPLITS:
            if not found[name]:
                raise ValueError(f"data.source={self.source}: the {name} split is empty; it needs rows")
        return {name: found[name][: self.limit] for name in SPLITS}

    def _sequence(self, split: str, place: int, value: Any) -> np.ndarray:
        """One value of the column that is read: (L, D) numbers, or (L,) tokens."""
        where = f"data.source={self.source}: row {place + 1} of the {split} split"
        try:
            kind, found, rate = _as_sequence(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: the column {self.inputs!r} holds {value!r:.60}: {error}") from error
        first = self._first = self._first or (kind, rate)
        if (kind, rate) != first:
            raise ValueError(
                f"{where}: the column {self.inputs!r} holds {_named(kind, rate)}, and {_named(*first)} before; "
                "all must be of one kind and one sample rate"
            )
        if not len(found):
            raise ValueError(f"{where}: the column {self.inputs!r} is empty")
        return found[: self.max_length]

    def _padded(self, split: str, rows: list[np.ndarray], longest: int) -> tuple[Tensor, Tensor]:
        shapes = {row.shape[1:] for row in rows}
        if len(shapes) > 1:
            raise ValueError(
                f"data.source={self.source}: sequences of the {split} split have different numbers of features: "
                f"{', '.join(sorted(str(shape[0]) if shape else 'tokens' for shape in shapes))}"
            )
        inputs = np.zeros((len(rows), longest, *rows[0].shape[1:]), np.int64 if self.tokens else np.float32)
        for place, row in enumerate(rows):
            inputs[place, : len(row)] = row
        return torch.from_numpy(inputs), torch.tensor([len(row) for row in rows])

    def _targets(self, values: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        first = values["train"][0]
        if isinstance(first, str | bool | int):
            labels = {name: [str(each) for each in column] for name, column in values.items()}
            self.class_names = check_classes(type(self).__name__, labels)
            places = {name: place for place, name in enumerate(self.class_names)}
            return {name: torch.tensor([places[each] for each in column]) for name, column in labels.items()}
        try:
            found = {name: torch.tensor(np.array(column, np.float32)) for name, column in values.items()}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"data.source={self.source}: the column {self.targets!r} holds {first!r:.60}; expected classes, "
                "numbers or lists of as many numbers each"
            ) from error
        return {name: column[:, None] if column.ndim == 1 else column for name, column in found.items()}

    def preprocessing(self) -> Preprocessing:
        """Rows like these."""
        self.setup()
        assert self._first is not None  # the training split has a row
        kind, rate = self._first
        if kind == "text":
            return Bytes(self.inputs, self.max_length, self.class_names)
        assert self.mean is not None
        assert self.std is not None
        options: Any = {"mean": self.mean.tolist(), "std": self.std.tolist(), "class_names": self.class_names}
        if kind == "image":
            return Images(self.d_input, None, length=self.max_length, **options)
        if kind == "recording" and rate is not None:
            return Recordings(rate, length=self.max_length, **options)
        return Signals(self.d_input, None, **options)


def _named(kind: str, rate: int | None) -> str:
    return kind if rate is None else f"{kind} of {rate} Hz"


def _as_sequence(value: Any) -> tuple[str, np.ndarray, int | None]:
    """What a value is, its steps, (L, D) numbers or (L,) tokens, and the sample rate of a recording."""
    if isinstance(value, str):
        return "text", as_bytes(value).numpy(), None
    if isinstance(value, Mapping) and ("bytes" in value or "array" in value):
        samples, rate = _as_samples(value)
        return "recording", samples, rate
    if hasattr(value, "getbands"):  # an image of Pillow
        levels = np.asarray(value.convert("L" if len(value.getbands()) == 1 else "RGB"), np.float32)
        return "image", levels.reshape(-1, 1 if levels.ndim == 2 else levels.shape[2]), None
    found = np.array(value, np.float32)
    if found.ndim not in {1, 2}:
        raise ValueError("expected a text, an image, a recording, or a list of numbers or of lists of them")
    return "numbers", found[:, None] if found.ndim == 1 else found, None


def _as_samples(value: Mapping[str, Any]) -> tuple[np.ndarray, int | None]:
    if value.get("array") is not None:
        return np.asarray(value["array"], np.float32)[:, None], value.get("sampling_rate")
    amplitudes, rate = read_sound(io.BytesIO(value["bytes"]))
    return amplitudes.mean(1, keepdims=True), rate
