"""Any text, by characters or tokens: the next one is to be predicted from those before."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed.data.base import SPLITS, SequenceData
from milkweed.data.cache import cache_folder, cached
from milkweed.data.characters import numbers
from milkweed.data.corpora import Corpus, Shares, open_corpora, open_text, three_parts
from milkweed.data.preprocessing.texts import Prompts
from milkweed.data.tables import is_table
from milkweed.data.token_files import check_known, encoder, token_files, tokenizer_key
from milkweed.data.tokenizers import load_tokenizer, token_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Text(SequenceData):
    """A text, cut into windows; the targets are the inputs one character, or one token, further on.

    The first 90% of a text file are for training, the next 5% for validation, the last for the test. By characters, the
    vocabulary is made of all that are in the file, by code point. With a tokenizer, tables and data sets on the hub can
    be read as well: every row is a document, which the tokenizer's end-of-text token follows, and a split that is
    missing is 5% of the training text, from its end.

    The text may be larger than memory: it is numbered once, and the numbers are kept in files that are read in place,
    below ~/.cache/milkweed or in the folder that the environment variable MILKWEED_CACHE names.

    Args:
        file: A UTF-8 text file; with a tokenizer also a file or folder of tables, or the name of a data set on the
            Hugging Face hub.
        tokenizer: Folder or hub name of a tokenizer of transformers, e.g. `gpt2`; None to read characters.
        column: Of tables, the one that holds the text.
        config: Of a data set on the hub, the name of its part.
        streaming: Whether a data set on the hub is read through without being kept on the disk; its tokens are.
        batch_size: Windows per optimiser step over all processes together.
        length: L, characters or tokens in a window; windows do not overlap.
        seed: Decides the order of the training windows, nothing else.
        limit: At most this many windows per split, for trials.
    """

    tokens = True

    @checked(but=("file", "tokenizer"))
    def __init__(
        self,
        file: str,
        tokenizer: str | None = None,
        column: str = "text",
        config: str | None = None,
        streaming: bool = False,
        batch_size: int = 32,
        length: int = 128,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        file = path_text("file", file)
        tokenizer = tokenizer if tokenizer is None else path_text("tokenizer", tokenizer)
        super().__init__(batch_size, seed, limit)
        if length < 1:
            raise ValueError(f"length={length} must be at least 1")
        self.file, self.length = Path(file), length
        self.tokenizer_name, self.column, self.config, self.streaming = tokenizer, column, config, streaming
        self._corpus: Corpus | None = None
        self._vocabulary: str | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def corpus(self) -> Corpus:
        """The text."""
        if self._corpus is None:
            if not self.file.is_file():
                raise FileNotFoundError(f"data.file={self.file} is not a file; name a text file as data.file")
            self._corpus = open_text(self.file)
        return self._corpus

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """What cuts the text into tokens; None for characters."""
        if self._tokenizer is None and self.tokenizer_name is not None:
            self._tokenizer = load_tokenizer(self.tokenizer_name, needs=())
        return self._tokenizer

    def prepare_data(self) -> None:
        """Write the tokenizer into the run's folder; Lightning calls this in one process."""
        if self.trainer is not None and self.tokenizer is not None:
            self.tokenizer.save_pretrained(self.trainer.default_root_dir)

    @property
    def vocabulary(self) -> str | None:
        """All characters of the text, sorted; a character's number is its place. None for tokens."""
        if self.tokenizer is not None:
            return None
        if self._vocabulary is None:
            self._vocabulary = _characters(self.corpus)
        if not self._vocabulary:
            raise ValueError(f"data.file={self.file} is empty; name a file with text in it")
        return self._vocabulary

    @property
    def d_input(self) -> int:
        """Number of different characters or tokens."""
        return len(self.vocabulary) if self.tokenizer is None else token_count(self.tokenizer)

    @property
    def d_output(self) -> int:
        """Number of different characters or tokens."""
        return self.d_input

    def load(self) -> dict[str, "TokenWindows"]:
        """Number the text and cut it into windows."""
        parts = self._numbered()
        name = min(parts, key=lambda name: len(parts[name]))
        count = len(parts[name])
        if count <= self.length:
            kind = "characters" if self.tokenizer is None else "tokens"
            shorter = f"data.length={count - 1} or less, or " if count > 1 else ""
            raise ValueError(
                f"data.file={self.file}: the {name} part has {count} {kind}, fewer than a window and one more; use "
                f"{shorter}a longer text"
            )
        if self.tokenizer is not None:
            for name, found in parts.items():
                check_known(f"data.file={self.file}: the {name} part", found, self.tokenizer, self.tokenizer_name)
        return {name: TokenWindows(found, self.length, self.tokenizer) for name, found in parts.items()}

    def preprocessing(self) -> Prompts:
        """Texts, by characters or by the tokenizer in the run folder."""
        return Prompts(self.vocabulary)

    def _numbered(self) -> dict[str, np.ndarray]:
        tokenizer = self.tokenizer
        if tokenizer is not None and (not self.file.is_file() or is_table(self.file)):
            parts = three_parts(open_corpora(str(self.file), self.column, self.config, self.streaming))
            end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
            return token_files(parts, encoder(tokenizer), self.d_input, tokenizer_key(tokenizer), end=end)
        whole = [Shares(self.corpus, ("text",))]
        if tokenizer is None:
            found = token_files(whole, self._encode, self.d_input, "characters")["text"]
        else:
            found = token_files(whole, encoder(tokenizer), self.d_input, tokenizer_key(tokenizer))["text"]
        bounds = [0, len(found) * 90 // 100, len(found) * 95 // 100, len(found)]
        return {name: found[first:last] for name, first, last in zip(SPLITS, bounds, bounds[1:], strict=False)}

    def _encode(self, pieces: list[str]) -> Iterator[np.ndarray]:
        return (numbers(piece, self.vocabulary) for piece in pieces)

    def _check(self, name: str, split: "TokenWindows") -> None:
        """Nothing: all characters are in the vocabulary, and reading them all would take as long as an epoch."""


class TokenWindows(Dataset):
    """Windows of tokens, and the same ones a token further on.

    Args:
        tokens: (N,) integers; may be larger than memory.
        length: L, tokens in a window; windows do not overlap.
        tokenizer: Writes tokens as text, whose characters are counted; None if every token is one.
        count: How many windows there are; as many as the tokens fill if None.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        count: int | None = None,
    ) -> None:
        self.tokens, self.length, self.tokenizer = tokens, length, tokenizer
        self.count = max(0, len(tokens) - 1) // length if count is None else count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        starts = [index * self.length for index in indices]
        rows = np.stack([self.tokens[start : start + self.length + 1] for start in starts]).astype(np.int64)
        windows = torch.from_numpy(rows)
        batch = {
            "inputs": windows[:, :-1],
            "targets": windows[:, 1:],
            "lengths": torch.full((len(indices),), self.length),
        }
        if self.tokenizer is not None:
            texts = self.tokenizer.batch_decode(batch["targets"].tolist(), clean_up_tokenization_spaces=False)
            batch["characters"] = torch.tensor([len(text) for text in texts])
        return batch

    def head(self, count: int) -> "TokenWindows":
        """The first windows only."""
        return TokenWindows(self.tokens, self.length, self.tokenizer, min(count, self.count))


def _characters(corpus: Corpus) -> str:
    """All characters of a text, sorted; read from the file where that has been found out before."""

    def make(temporary: Path) -> None:
        found: set[str] = set()
        for document in corpus.documents():
            for piece in document:
                found.update(piece)
        (temporary / "characters.txt").write_bytes("".join(sorted(found)).encode())

    folder = cached(cache_folder("characters", corpus.key), make)
    return (folder / "characters.txt").read_bytes().decode()
