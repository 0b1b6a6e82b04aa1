"""Text with some of its tokens masked, to be predicted from those around them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from milkweed._arguments import checked
from milkweed._batches import IGNORED
from milkweed._files import path_text
from milkweed._seeding import derived_seed
from milkweed.data.base import SPLITS
from milkweed.data.corpora import Shares, open_corpora, three_parts
from milkweed.data.preprocessing.texts import Sentences
from milkweed.data.token_files import check_known, encoder, token_files, tokenizer_key, trained_tokenizer
from milkweed.data.tokenized import TokenizedData
from milkweed.data.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase


class MaskedText(TokenizedData):
    """A text in windows of tokens, `[CLS] … [SEP]`, of which some are masked.

    Of the chosen tokens 80% become [MASK], 10% another token by chance, and 10% stay as they are. They are chosen anew
    in every epoch of the training, and always the same in validation and test, whatever the seed. Targets are the
    chosen tokens, and `IGNORED` elsewhere.

    A text file, or data without splits of their own, are cut: the first 90% are for training, the next 5% for
    validation, the last for the test. Where only one of these is missing, it is the last 5% of the training text.

    The text may be larger than memory. It is cut into tokens once, a few lines at a time, and the tokens are kept in
    files that are read in place: below ~/.cache/milkweed, or in the folder that the environment variable MILKWEED_CACHE
    names.

    Args:
        source: A UTF-8 text file; or a file or folder of tables, or the name of a data set on the Hugging Face hub.
        tokenizer: Folder or hub name of a tokenizer of transformers; None to train one on the training text.
        vocabulary_size: Tokens that the model knows, and of the tokenizer that is trained.
        masked: Share of the tokens that are chosen.
        column: Of tables, the one that holds the text.
        config: Of a data set on the hub, the name of its part.
        streaming: Whether a data set on the hub is read through without being kept on the disk; its tokens are.
        batch_size: Windows per optimiser step over all processes together.
        length: L, tokens in a window, its frame included.
        seed: Decides the order of the training windows, and which of their tokens are chosen in which epoch.
        limit: At most this many windows per split, for trials.

    Source:
        BERT (arXiv 1810.04805), section 3.1. There the choice is drawn once for every position; here each window has
        exactly its share of chosen tokens, and at least one.
    """

    @checked(but=("source", "tokenizer"))
    def __init__(
        self,
        source: str,
        tokenizer: str | None = None,
        vocabulary_size: int = 30528,
        masked: float = 0.3,
        column: str = "text",
        config: str | None = None,
        streaming: bool = False,
        batch_size: int = 32,
        length: int = 128,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        source = path_text("source", source)
        super().__init__(tokenizer, vocabulary_size, batch_size, length, seed, limit)
        if not 0 < masked <= 1:
            raise ValueError(f"masked={masked} must be above 0 and at most 1; M2-BERT was trained with 0.3")
        self.source, self.masked, self.column, self.config = source, masked, column, config
        self.streaming = streaming
        self._texts: list[Shares] | None = None

    @property
    def d_output(self) -> int:
        """Number of different tokens, among which the model predicts."""
        return self.vocabulary_size

    @property
    def texts(self) -> list[Shares]:
        """The text, and how it is cut into splits; the training text is the first of the first."""
        if self._texts is None:
            self._texts = three_parts(open_corpora(self.source, self.column, self.config, self.streaming))
        return self._texts

    def make_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer, or train it on the training text."""
        if self.tokenizer_name is None:
            return trained_tokenizer(self.texts[0], self.vocabulary_size)
        tokenizer = load_tokenizer(self.tokenizer_name)
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"data.tokenizer={self.tokenizer_name} has no mask token; use one of a BERT, or null to train one"
            )
        return tokenizer

    def load(self) -> dict[str, "MaskedWindows"]:
        """Cut the text into tokens and windows."""
        tokenizer, inside = self.tokenizer, self.length - 2
        masking = Masking(tokenizer, self.masked)
        tokens = token_files(self.texts, encoder(tokenizer), self.vocabulary_size, tokenizer_key(tokenizer))
        for name in SPLITS:
            count = len(tokens[name])
            if count < inside:
                shorter = f"data.length={count + 2} or less, or " if count > 1 else ""
                raise ValueError(
                    f"data.source={self.source} is too short: its {name} split has {count} tokens, fewer than a "
                    f"window of length={self.length}; use {shorter}a longer text"
                )
            check_known(f"data.source={self.source}: the {name} split", tokens[name], tokenizer, self.tokenizer_name)
        frame = tokenizer.cls_token_id, tokenizer.sep_token_id
        return {
            name: MaskedWindows(tokens[name], inside, frame, masking, lambda number=number: (number,))
            for number, name in enumerate(SPLITS)
        }

    def preprocessing(self) -> Sentences:
        """Texts with masks in them."""
        return Sentences(self.length, ["text"])

    def _check(self, name: str, split: "MaskedWindows") -> None:
        """Nothing: all tokens are the tokenizer's, and reading them all would take as long as an epoch."""

    def train_dataloader(self) -> "DataLoader":
        """Shuffled training batches, whose order and choice of tokens depend on (seed, epoch) alone."""
        loader = super().train_dataloader()
        batches, seed = self._batches, self.seed
        self.split("train").keys = lambda: (seed, batches.epoch)
        return loader


class Masking:
    """Which tokens of a window are chosen, a share of those inside the frame, and what becomes of them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", share: float) -> None:
        self.mask, self.share = tokenizer.mask_token_id, share
        special = set(tokenizer.all_special_ids)
        self.ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - special))

    def __call__(self, tokens: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Mask one window (L,), framed by one token on either side: inputs and targets, both (L,)."""
        random = np.random.RandomState(seed)
        inside = len(tokens) - 2
        chosen = 1 + random.permutation(inside)[: max(1, round(self.share * inside))]
        inputs, targets = tokens.copy(), np.full_like(tokens, IGNORED)
        targets[chosen] = tokens[chosen]
        fate = random.random_sample(len(chosen))
        strange = self.ordinary[random.randint(len(self.ordinary), size=len(chosen))]
        inputs[chosen] = np.where(fate < 0.8, self.mask, np.where(fate < 0.9, strange, tokens[chosen]))
        return inputs, targets


class MaskedWindows(Dataset):
    """Windows that are framed and masked as they are asked for.

    Args:
        tokens: (N,), integers; may be larger than memory.
        inside: Tokens of a window without its frame.
        frame: The tokens before and behind.
        masking: How windows are masked.
        keys: What decides the choice beside a window's place; asked for every batch.
        count: How many windows there are; as many as the tokens fill if None.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        inside: int,
        frame: tuple[int, int],
        masking: Masking,
        keys: Callable[[], tuple[int, ...]],
        count: int | None = None,
    ) -> None:
        self.tokens, self.inside, self.frame, self.masking, self.keys = tokens, inside, frame, masking, keys
        self.count = len(tokens) // inside if count is None else count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        keys = self.keys()
        masked = [self.masking(self._window(index), derived_seed(*keys, index)) for index in indices]
        inputs, targets = (torch.from_numpy(np.stack(part)) for part in zip(*masked, strict=True))
        return {"inputs": inputs, "targets": targets, "lengths": torch.full((len(indices),), inputs.shape[1])}

    def head(self, count: int) -> "MaskedWindows":
        """The first windows only."""
        kept = min(count, self.count)
        return MaskedWindows(self.tokens, self.inside, self.frame, self.masking, self.keys, kept)

    def _window(self, index: int) -> np.ndarray:
        start = index * self.inside
        window = np.empty(self.inside + 2, np.int64)
        window[0], window[-1] = self.frame
        window[1:-1] = self.tokens[start : start + self.inside]
        return window
