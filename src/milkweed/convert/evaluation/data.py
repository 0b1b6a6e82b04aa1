"""Data that a metric is measured on: texts, or a table of texts with what is right for each."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from milkweed.convert.hub.conversion_progress import FolderError

TABLES = {".csv": ",", ".tsv": "\t"}
TEXTS = {".txt", ""}
TARGETS = ("score", "label", "similarity_score", "similarity", "relatedness_score")
COLUMNS = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts, or pairs of them, and what is right for each."""

    texts: tuple[tuple[str, ...], ...]
    targets: tuple[str, ...]

    @property
    def numbers(self) -> list[float] | None:
        """The targets as finite numbers, or None if one is none."""
        return [float(target) for target in self.targets] if all(map(is_number, self.targets)) else None


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_data(given: str | os.PathLike[str] | Sequence[object]) -> list[str] | Table:
    """Read data from a file by its suffix, or take it as it is: texts, or rows of texts and a target."""
    if isinstance(given, str | os.PathLike):
        return _read_file(Path(given))
    rows = list(given)
    if all(isinstance(row, str) for row in rows):
        return [str(row) for row in rows]
    found = [tuple(map(str, row)) for row in rows if isinstance(row, list | tuple)]
    if len(found) != len(rows):
        raise TypeError("metric_data must be a file, a list of texts, or one of rows (text, target) or (a, b, target)")
    return _table("metric_data", found)


def _read_file(path: Path) -> list[str] | Table:
    given = f"metric_data={str(path)!r}"
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise FolderError(f"{given} {state}; expected a text file with one text per line, or a table (.csv, .tsv)")
    kind = path.suffix.lower()
    if kind not in TABLES.keys() | TEXTS:
        raise FolderError(
            f"{given} is a {kind} file; expected .txt with one text per line, or a table .csv or .tsv; metrics of your "
            "own read what they like"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind in TABLES:
                return _table(given, [tuple(row) for row in csv.reader(file, delimiter=TABLES[kind]) if any(row)])
            texts = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise FolderError(f"{given} is no UTF-8 text") from error
    except csv.Error as error:
        raise FolderError(f"{given} is no table: {error}") from error
    if not texts:
        raise FolderError(f"{given} is empty; expected one text per line")
    return texts


def _table(given: str, rows: list[tuple[str, ...]]) -> Table:
    if not rows:
        raise FolderError(f"{given} is empty; expected rows of one or two texts and what is right for them")
    texts, target, first = _columns(given, rows[0])
    rows = rows[first:]
    for number, row in enumerate(rows, first + 1):
        if len(row) <= max(*texts, target):
            raise FolderError(f"{given} has {len(row)} columns in row {number}; expected {max(*texts, target) + 1}")
    if len(rows) < 2:
        raise FolderError(f"{given} has {len(rows)} rows; a metric needs two or more")
    return Table(tuple(tuple(row[i] for i in texts) for row in rows), tuple(row[target] for row in rows))


def _columns(given: str, first: Sequence[str]) -> tuple[tuple[int, ...], int, int]:
    """Where the texts and the target are, and how many rows are headings."""
    names = [cell.strip().lower() for cell in first]
    target = next((names.index(name) for name in TARGETS if name in names), None)
    texts = next((tuple(map(names.index, each)) for each in COLUMNS if set(each) <= set(names)), None)
    if target is not None and texts is not None:
        return texts, target, 1
    if len(first) not in {2, 3}:
        raise FolderError(
            f"{given} has {len(first)} columns; expected text,target or text,text,target, or a first row that names "
            "them: sentence1, sentence2, score (or text, label)"
        )
    return tuple(range(len(first) - 1)), len(first) - 1, 0
