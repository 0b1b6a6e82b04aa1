"""Texts as raw inputs: characters, tokens, and sentences or pairs of them in BERT's frame."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milkweed.data.characters import decode, encode
from milkweed.data.preprocessing.base import Preprocessing, Sample
from milkweed.data.tables import Row, is_table, iterate_rows
from milkweed.data.tokenized import frame
from milkweed.data.tokenizers import load_tokenizer

FILES = (".txt", ".csv", ".tsv", ".jsonl", ".json")


def is_missing_file(source: str) -> bool:
    """Whether a text is meant as the name of a file that is not there: one word with the suffix of texts."""
    return source.endswith(FILES) and len(source.split()) == 1


def whole_text(source: Any) -> tuple[str, str]:
    """A name and a text: the source itself, or all of a text file that it names."""
    if not isinstance(source, str | Path):
        raise TypeError(f"the input must be a text or the name of a text file; got {type(source).__name__}")
    if _is_file(source):
        try:
            return str(source), Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is no UTF-8 text: {error}") from error
    if isinstance(source, Path) or is_missing_file(source):
        raise FileNotFoundError(f"{source} is not a file; give a text, or the name of a text file")
    return source, source


def _is_file(source: str | Path) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # a text too long for a name, or with a null in it
        return False


class Prompts(Preprocessing):
    """Texts that a language model continues, by characters, or by the tokens of the tokenizer in the run folder.

    Args:
        vocabulary: All characters in the order of their numbers; None for tokens.
    """

    def __init__(self, vocabulary: str | None = None, class_names: None = None) -> None:
        super().__init__(class_names, vocabulary=vocabulary)
        self.vocabulary = vocabulary

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the run folder; None for characters."""
        return load_tokenizer(str(self.folder), needs=()) if self.vocabulary is None else None

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give the tokens of a text."""
        check_no_rate(rate)
        name, text = whole_text(source)
        if not text:
            raise ValueError("the prompt is empty; give at least one character to go on from")
        try:
            tokens = self.encode(text)
        except ValueError as error:
            raise ValueError(f"{name:.40}: {error}") from error
        yield name, {"inputs": tokens}

    def encode(self, text: str) -> Tensor:
        """Number the characters or tokens of a text, (L,)."""
        if self.vocabulary is not None:
            return encode(text, self.vocabulary)
        return torch.tensor(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, tokens: Tensor) -> str:
        """Write numbers as text."""
        if self.vocabulary is not None:
            return decode(tokens, self.vocabulary)
        return str(self.tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False))


class Texts(Preprocessing):
    """Texts, each of one field or of two; a base class.

    A source is a text; a pair is two, divided by a tab, or in Python a tuple or a mapping by the fields' names. A .txt
    file holds one per line; .csv, .tsv, .json and .jsonl files have the fields as columns.
    """

    fields: list[str]

    def texts(self, source: Any) -> Iterator[tuple[str, list[str]]]:
        """Give a name and the texts, one for each field, of every input in a source."""
        if isinstance(source, Mapping):
            yield "the input", self._of_row("the input", dict(source))
        elif isinstance(source, tuple):
            yield "the input", self._counted("the input", list(source))
        elif isinstance(source, str | Path) and _is_file(source) and is_table(Path(source)):
            for number, row in enumerate(iterate_rows(Path(source), tuple(self.fields))):
                where = f"{source}[{number}]"
                yield where, self._of_row(where, row)
        else:
            name, text = whole_text(source)
            lines = text.splitlines() if name is not text else [text]
            for number, line in enumerate(lines):
                where = line if name is text else f"{name}[{number}]"
                yield where, self._counted(where, line.split("\t") if len(self.fields) > 1 else [line])

    def _of_row(self, where: str, row: Row) -> list[str]:
        missing = [field for field in self.fields if field not in row]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}; the model reads {', '.join(self.fields)}")
        return self._counted(where, [row[field] for field in self.fields])

    def _counted(self, where: str, texts: list[Any]) -> list[str]:
        if len(texts) != len(self.fields):
            raise ValueError(
                f"{where}: the model reads {len(self.fields)} texts, {' and '.join(self.fields)}, and got "
                f"{len(texts)}; divide them by a tab"
            )
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{where} must hold texts; got {type(text).__name__}")
        return texts


class Sentences(Texts):
    """Sentences, or pairs of them, as tokens in BERT's frame, by the tokenizer in the run folder; see `Texts`.

    Args:
        length: Most tokens, frame included; longer texts are cut.
        fields: Names of one field or two.
        whole: Whether batches are padded to `length`, for models that read padding.
        class_names: Names of the classes; none for numbers.
    """

    def __init__(
        self,
        length: int,
        fields: list[str],
        whole: bool = False,
        class_names: Iterable[str] | None = None,
    ) -> None:
        super().__init__(class_names, length=length, fields=fields, whole=whole)
        self.length, self.fields = length, list(fields)
        self.whole = length if whole else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the run folder."""
        return load_tokenizer(str(self.folder))

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give the tokens of every sentence or pair."""
        check_no_rate(rate)
        for name, texts in self.texts(source):
            columns = [[text] for text in texts]
            tokens, types, lengths = frame(
                self.tokenizer, columns[0], columns[1] if len(columns) > 1 else None, self.length
            )
            count = int(lengths[0])
            yield name, {"inputs": tokens[0, :count], "token_types": types[0, :count]}


def check_no_rate(rate: float) -> None:
    """Refuse another rate than 1."""
    if rate != 1:
        raise ValueError(f"rate={rate:g} must be 1: texts have no sampling rate")
