"""Tokens of texts of any size: made once, kept in files, and read in place."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from milkweed.data.cache import cache_folder, cached
from milkweed.data.corpora import Shares
from milkweed.data.tables import content_key
from milkweed.data.tokenizers import load_tokenizer, token_count, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pieces that are cut into tokens at a time.
_PIECES = 1000
# Tokens that are looked at, at a time, for one that is known.
_GLANCE = 2**16

# Where a tokenizer was read from; what is there counts, not the place.
_PATHS = ("vocab_file", "tokenizer_file", "merges_file", "spm_file")

Encode = Callable[[list[str]], Iterable[np.ndarray]]


def token_files(
    texts: list[Shares], encode: Encode, size: int, *keys: str, end: int | None = None
) -> dict[str, np.ndarray]:
    """Cut texts into tokens, unless that has been done before: by split, (N,) unsigned integers, mapped into memory.

    ``encode`` gives the tokens of every piece of text, and ``keys`` name what it does; ``size`` is the number of
    different tokens. The token ``end`` follows every document, if it is given.
    """
    kind = np.uint16 if size <= 2**16 else np.uint32
    folder = cache_folder("tokens", *(each.key for each in texts), np.dtype(kind).name, str(end), *keys)

    def make(temporary: Path) -> None:
        for each in texts:
            _write(temporary, each, encode, kind, end)

    cached(folder, make)
    return {name: _mapped(folder / f"{name}.bin", kind) for each in texts for name in each.names}


def _mapped(file: Path, kind: type) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(file, kind, mode="r") if file.stat().st_size else np.zeros(0, kind)


def _write(folder: Path, text: Shares, encode: Encode, kind: type, end: int | None) -> None:
    files = {name: (folder / f"{name}.bin").open("wb") for name in text.names}
    try:
        with _progress(text) as advance:
            pieces = text.pieces()
            while batch := list(islice(pieces, _PIECES)):
                rows = encode([piece for _, piece, _ in batch])
                for (name, piece, ends), row in zip(batch, rows, strict=True):
                    files[name].write(np.asarray(row, kind).tobytes())
                    if ends and end is not None:
                        files[name].write(np.array([end], kind).tobytes())
                    advance(len(piece.encode()))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()


@contextmanager
def _progress(text: Shares) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, which vanishes when it is done."""
    columns = (
        TextColumn("cutting {task.description} into tokens"),
        *(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(", ".join(text.names), total=text.corpus.size)
        yield lambda count: progress.advance(bar, count)


def tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A name for what a tokenizer does, in hexadecimal digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # Options, such as whether capitals count, and files of its own decide beside the vocabulary.
        options = {
            name: repr(value) for name, value in tokenizer.init_kwargs.items() if name not in {"name_or_path", *_PATHS}
        }
        state = {"options": options, "vocabulary": sorted(tokenizer.get_vocab().items()), "files": _files(tokenizer)}
    else:
        # How long texts were cut and filled up lately is no part of it.
        state = {
            name: value for name, value in json.loads(backend.to_str()).items() if name not in {"truncation", "padding"}
        }
    state["class"] = type(tokenizer).__name__
    state["added"] = sorted((number, repr(token)) for number, token in tokenizer.added_tokens_decoder.items())
    state["split_special_tokens"] = getattr(tokenizer, "split_special_tokens", False)
    state["versions"] = _versions()
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()


def _files(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """What the files hold that a tokenizer without a fast backend reads, by its own names for them."""
    paths = {name: getattr(tokenizer, name, None) for name in tokenizer.vocab_files_names}
    return {name: content_key(Path(path)) for name, path in paths.items() if path and Path(path).is_file()}


def _versions() -> list[str]:
    """Of the packages that cut texts into tokens."""
    return [f"{name} {version(name)}" for name in ("tokenizers", "transformers")]


def check_known(where: str, tokens: np.ndarray, tokenizer: "PreTrainedTokenizerBase", name: str | None) -> None:
    """Refuse a text of which a tokenizer knows no word; as a rule a glance at its beginning is enough.

    Such a text holds nothing but the unknown token, and those that end documents.
    """
    strange = [
        token for token in (tokenizer.unk_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id) if token is not None
    ]
    if all(np.isin(tokens[first : first + _GLANCE], strange).all() for first in range(0, len(tokens), _GLANCE)):
        raise ValueError(
            f"{where} has only words that data.tokenizer={name} does not know; use a tokenizer for this language"
        )


def trained_tokenizer(text: Shares, size: int) -> "PreTrainedTokenizerBase":
    """Train a tokenizer on the first split of a text, unless that has been done before."""
    folder = cache_folder("tokenizers", text.key, str(size), *_versions())
    cached(folder, lambda temporary: train_tokenizer(_FirstSplit(text), size).save_pretrained(temporary))
    return load_tokenizer(str(folder))


class _FirstSplit:
    """The lines of the first split, as often as they are asked for."""

    def __init__(self, text: Shares) -> None:
        self.text = text

    def __iter__(self) -> Iterator[str]:
        for name, piece, _ in self.text.pieces():
            if name != self.text.names[0]:
                return
            yield from piece.splitlines()


def encoder(tokenizer: "PreTrainedTokenizerBase") -> Encode:
    """Make the function by which a tokenizer cuts texts into tokens, without frames, for `token_files`."""
    kind = np.uint16 if token_count(tokenizer) <= 2**16 else np.uint32

    def encode(pieces: list[str]) -> Iterator[np.ndarray]:
        rows = tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]
        return (np.asarray(row, kind) for row in rows)

    return encode
