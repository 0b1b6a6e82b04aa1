"""Text with some of its tokens masked: they are to be told from those around them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from milkweed.data.base import SPLITS
from milkweed.data.batches import ArrayDataset
from milkweed.data.tables import SUFFIXES, read_tables
from milkweed.data.tokenized import TokenizedData
from milkweed.data.tokenizers import load_tokenizer, train_tokenizer
from milkweed.train.seeding import derived_seed

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Target of the tokens that are not to be told."""


class MaskedText(TokenizedData):
    """A text in windows of tokens, `[CLS] … [SEP]`, of which some are masked.

    Of the chosen tokens 80% become [MASK], 10% another token by chance, and 10% stay as they are. They are chosen anew
    in every epoch of the training, and always the same in validation and test, whatever the seed. Targets are the
    chosen tokens, and `IGNORED` elsewhere.

    All of the text is held in memory. A text file, or data without splits of their own, are cut: the first 90% are for
    training, the next 5% for validation, the last for the test.

    Args:
        source: A UTF-8 text file; or a file or folder of tables, or the name of a data set on the Hugging Face hub.
        tokenizer: Folder or hub name of a tokenizer of transformers; None to train one on the training text.
        vocabulary_size: Tokens that the model knows, and of the tokenizer that is trained.
        masked: Share of the tokens that are chosen.
        column: Of tables, the one that holds the text.
        config: Of a data set on the hub, the name of its part.
        batch_size: Windows per optimiser step over all processes together.
        length: L, tokens in a window, its frame included.
        seed: Decides the order of the training windows, and which of their tokens are chosen in which epoch.
        limit: At most this many windows per split, for trials.

    Raises:
        ValueError: If a number is out of its range.

    Source:
        BERT (arXiv 1810.04805), section 3.1. There the choice is drawn once for every position; here each window has
        exactly its share of chosen tokens, and at least one.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str | None = None,
        vocabulary_size: int = 30528,
        masked: float = 0.3,
        column: str = "text",
        config: str | None = None,
        batch_size: int = 32,
        length: int = 128,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(tokenizer, vocabulary_size, batch_size, length, seed, limit)
        if not 0 < masked <= 1:
            raise ValueError(f"masked={masked} must be above 0 and at most 1; M2-BERT was trained with 0.3")
        self.source, self.masked, self.column, self.config = source, masked, column, config
        self._texts: dict[str, str] | None = None

    @property
    def d_output(self) -> int:
        """Number of tokens that the model tells."""
        return self.vocabulary_size

    @property
    def texts(self) -> dict[str, str]:
        """The text of every split."""
        if self._texts is None:
            self._texts = _three_parts(_read_texts(self.source, self.column, self.config))
        return self._texts

    def make_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer, or train it on the training text.

        Returns:
            A tokenizer of transformers.

        Raises:
            ValueError: If it has no token that masks.
        """
        if self.tokenizer_name is None:
            return train_tokenizer(self.texts["train"], self.vocabulary_size)
        tokenizer = load_tokenizer(self.tokenizer_name)
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"data.tokenizer={self.tokenizer_name} has no mask token; use one of a BERT, or null to train one"
            )
        return tokenizer

    def load(self) -> dict[str, ArrayDataset]:
        """Read the text, and cut it into tokens and windows.

        Returns:
            Datasets under the names `train`, `val` and `test`.

        Raises:
            ValueError: If a split is shorter than one window.
        """
        masking = Masking(self.tokenizer, self.masked)
        splits: dict[str, ArrayDataset] = {}
        for number, name in enumerate(SPLITS):
            lines = [line for line in self.texts[name].split("\n") if line.strip()]
            rows = self.tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"] if lines else []
            tokens = np.concatenate([np.asarray(row, np.int32) for row in rows] or [np.zeros(0, np.int32)])
            inside = self.length - 2
            if len(tokens) < inside:
                raise ValueError(
                    f"data.source={self.source} is too short: its {name} split has {len(tokens)} tokens, fewer than a "
                    f"window of length={self.length}; use --data.length {max(4, len(tokens) + 2)} or less, or a longer "
                    "text"
                )
            windows = torch.from_numpy(tokens[: len(tokens) // inside * inside].reshape(-1, inside))
            framed = torch.nn.functional.pad(windows, (1, 0), value=self.tokenizer.cls_token_id)
            framed = torch.nn.functional.pad(framed, (0, 1), value=self.tokenizer.sep_token_id)
            splits[name] = MaskedWindows(framed, masking, lambda number=number: (number,))
        return splits

    def train_dataloader(self) -> "DataLoader":
        """Shuffled batches of the training split.

        Returns:
            A loader whose order and choice of tokens depend on (seed, epoch) alone.
        """
        loader = super().train_dataloader()
        batches, seed = self._batches, self.seed
        self.split("train").keys = lambda: (seed, batches.epoch)
        return loader


class Masking:
    """Which tokens of a window are chosen, and what becomes of them.

    Args:
        tokenizer: Knows the mask, and which tokens are ordinary ones.
        share: Of the tokens inside the frame that are chosen.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", share: float) -> None:
        self.mask, self.share = tokenizer.mask_token_id, share
        special = set(tokenizer.all_special_ids)
        self.ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - special))

    def __call__(self, tokens: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Mask one window.

        Args:
            tokens: (L,), framed by one token on either side.
            seed: Decides everything.

        Returns:
            Inputs and targets, both (L,).
        """
        random = np.random.RandomState(seed)
        inside = len(tokens) - 2
        chosen = 1 + random.permutation(inside)[: max(1, round(self.share * inside))]
        inputs, targets = tokens.copy(), np.full_like(tokens, IGNORED)
        targets[chosen] = tokens[chosen]
        fate = random.random_sample(len(chosen))
        strange = self.ordinary[random.randint(len(self.ordinary), size=len(chosen))]
        inputs[chosen] = np.where(fate < 0.8, self.mask, np.where(fate < 0.9, strange, tokens[chosen]))
        return inputs, targets


class MaskedWindows(ArrayDataset):
    """Windows that are masked as they are asked for.

    Args:
        windows: Framed tokens, (N, L).
        masking: How they are masked.
        keys: What decides the choice beside a window's place; asked for every batch.
    """

    def __init__(self, windows: torch.Tensor, masking: Masking, keys: Callable[[], tuple[int, ...]]) -> None:
        super().__init__(windows, windows)
        self.masking, self.keys = masking, keys

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        keys, windows = self.keys(), self.inputs[indices].long().numpy()
        pairs = [
            self.masking(window, derived_seed(*keys, index)) for window, index in zip(windows, indices, strict=True)
        ]
        inputs, targets = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return {"inputs": inputs, "targets": targets, "lengths": self.lengths[indices]}

    def head(self, count: int) -> "MaskedWindows":
        """The first windows only.

        Args:
            count: How many.

        Returns:
            A dataset of at most `count` windows.
        """
        return MaskedWindows(self.inputs[:count], self.masking, self.keys)


def _read_texts(source: str, column: str, config: str | None) -> dict[str, str]:
    path = Path(source)
    if path.is_file() and path.suffix not in SUFFIXES:
        try:
            return {"train": path.read_bytes().decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            raise ValueError(f"data.source={source} is no UTF-8 text: {error}; convert it") from error
    tables = read_tables(source, (column,), config)
    return {split: "\n".join(row[column] for row in rows) for split, rows in tables.items()}


def _three_parts(texts: dict[str, str]) -> dict[str, str]:
    """Cut what is missing, 5% each, from the end of the training text, between words."""
    if "train" not in texts:
        raise ValueError(f"the data have the splits {', '.join(sorted(texts))}; expected one that is named train")
    text, parts = texts["train"], {"val": texts.get("validation"), "test": texts.get("test")}
    end = len(text)
    for name in ("test", "val"):
        if parts[name] is None:
            start = _next_word(text, max(0, end - -(-len(text) // 20)), end)
            parts[name], end = text[start:end], start
    return {"train": text[:end]} | parts


def _next_word(text: str, start: int, end: int) -> int:
    while 0 < start < end and not text[start - 1].isspace():
        start += 1
    return start
