"""Texts of any size, read in pieces of a few lines: a text file, or what the tables of `tables.py` hold in a column."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from milkweed.data.tables import ColumnError, Table, content_key, is_table, open_tables

# Pieces are about this long, and longer only within a word that is.
_PIECE = 1000
_LONGEST = 65536


@dataclass(frozen=True)
class Corpus:
    """A text."""

    # Gives an iterator over its documents, each an iterator over pieces which together are its text.
    documents: Callable[[], Iterator[Iterator[str]]]
    key: str  # names its content: changes if that does
    size: int | None = None  # in bytes, if it is known without reading


@dataclass(frozen=True)
class Shares:
    """A corpus that is cut into splits, in order, between words."""

    corpus: Corpus  # the text
    names: tuple[str, ...]  # the splits
    # Of every split but the first, its share of the text in percent; the first is what is left.
    last: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Names the content of the splits."""
        return json.dumps([self.corpus.key, self.names, self.last, _PIECE, _LONGEST])

    def pieces(self) -> Iterator[tuple[str, str, bool]]:
        """Read the text: the name of a split, a piece of its text, and whether a document ends with it.

        The text is read once more before, if it is cut, to know where.
        """
        bounds = self._bounds()
        place, number = 0, 0
        for document in self.corpus.documents():
            for piece in document:
                left = piece
                while number < len(bounds) and place + len(left) >= bounds[number]:
                    end = _next_word(left, max(0, bounds[number] - place))
                    yield self.names[number], left[:end], False
                    left, place, number = left[end:], place + end, number + 1
                yield self.names[number], left, False
                place += len(left)
            yield self.names[number], "", True

    def _bounds(self) -> list[int]:
        """Characters before the second split, the third, ..."""
        if not self.last:
            return []
        total = sum(len(piece) for document in self.corpus.documents() for piece in document)
        sizes = [-(-total * share // 100) for share in self.last]
        return [max(0, total - sum(sizes[number:])) for number in range(len(sizes))]


def three_parts(corpora: dict[str, Corpus]) -> list[Shares]:
    """Say what is for training, validation and test; texts are given by split, and `train` must be there.

    `train` is the first split of the first text. A split that is missing is 5% of the training text, from its end.
    """
    there = {"val": corpora.get("validation"), "test": corpora.get("test")}
    missing = tuple(name for name, corpus in there.items() if corpus is None)
    cut = Shares(corpora["train"], ("train", *missing), (5,) * len(missing))
    return [cut, *(Shares(corpus, (name,)) for name, corpus in there.items() if corpus is not None)]


def _next_word(text: str, start: int) -> int:
    while 0 < start < len(text) and not text[start - 1].isspace():
        start += 1
    return start


def open_corpora(source: str, column: str, config: str | None = None, streaming: bool = False) -> dict[str, Corpus]:
    """Find a text and its splits: a UTF-8 text file is the split `train`, one document; of tables every row is one.

    The other arguments are those of `open_tables`.
    """
    path = Path(source)
    if path.is_file() and not is_table(path):
        return {"train": open_text(path)}
    corpora = {
        split: Corpus(lambda table=table: _documents(table, column), json.dumps([column, table.key]))
        for split, table in open_tables(source, (column,), config, streaming, texts=(column,)).items()
    }
    if "train" not in corpora:
        raise ValueError(
            f"data.source={source}: the data have the splits {', '.join(sorted(corpora))}; expected one that is named "
            "train"
        )
    return corpora


def open_text(path: Path) -> Corpus:
    """Find a text file, one document; reading it raises ValueError if it is not UTF-8."""
    return Corpus(lambda: iter([break_up(_blocks(path))]), f"text {content_key(path)}", path.stat().st_size)


def _documents(table: Table, column: str) -> Iterator[Iterator[str]]:
    try:
        for row in table.rows():
            yield break_up([row[column]])
    except ColumnError as error:
        raise ValueError(f"{error}; data.column names the column that holds texts") from error


def _blocks(path: Path) -> Iterator[str]:
    try:
        # newline="" keeps the line ends of the file.
        with path.open(encoding="utf-8-sig", newline="") as file:
            while block := file.read(_LONGEST):
                yield block
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; convert it") from error


def break_up(blocks: Iterable[str]) -> Iterator[str]:
    """Break a text, in any parts, where a tokenizer does as well: after the end of a line, or else between words.

    Pieces have about a thousand characters, or fewer lines than that. A break is never inside of white space and never
    after a blank, which some tokenizers join to the next word.
    """
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > _PIECE:
            end = _break(text, start)
            if end is None:
                break
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def _break(text: str, start: int) -> int | None:
    """Where the piece ends that begins at a place; None if that is not known yet."""
    limit = start + _PIECE
    for first, last in ((start, limit), (limit, min(len(text) - 1, start + _LONGEST))):
        # The last line end, then the last blank, of the first thousand; behind them, the first of either kind.
        places = range(last, first, -1) if first == start else range(first, last)
        for is_end in (_ends_line, _ends_word):
            found = next((place for place in places if is_end(text, place)), None)
            if found is not None:
                return found
    return start + _LONGEST if len(text) - start > _LONGEST else None


def _ends_line(text: str, place: int) -> bool:
    return text[place - 1] == "\n" and not text[place].isspace()


def _ends_word(text: str, place: int) -> bool:
    return text[place].isspace() and not text[place - 1].isspace()
