"""What all data that a tokenizer has cut have in common."""

from typing import TYPE_CHECKING

import torch

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed.data.base import SequenceData
from milkweed.data.batches import ArrayDataset
from milkweed.data.tokenizers import load_tokenizer, token_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizedData(SequenceData):
    """Texts as tokens: inputs are (B, L) integers below `vocabulary_size`.

    A family implements `load`. The tokenizer is written into the folder of a run, which thereby can be named as the
    `tokenizer` of the next.

    Args:
        tokenizer: Folder or hub name of a tokenizer of transformers; None where a family makes one.
        vocabulary_size: Tokens that the model knows, at least as many as the tokenizer has.
        batch_size: Samples per optimiser step over all processes together.
        length: Longest sequence, in tokens.
        seed: Decides the order of the training samples.
        limit: At most this many samples per split, for trials.
    """

    tokens = True

    @checked(but=("tokenizer",))
    def __init__(
        self,
        tokenizer: str | None,
        vocabulary_size: int,
        batch_size: int,
        length: int,
        seed: int,
        limit: int | None,
    ) -> None:
        tokenizer = tokenizer if tokenizer is None else path_text("tokenizer", tokenizer)
        super().__init__(batch_size, seed, limit)
        if length < 4:
            raise ValueError(f"length={length} must be at least 4: texts are framed by two further tokens or three")
        if vocabulary_size < 1:
            raise ValueError(f"vocabulary_size={vocabulary_size} must be at least 1")
        self.tokenizer_name, self.vocabulary_size, self.length = tokenizer, vocabulary_size, length
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def d_input(self) -> int:
        """Number of tokens that the model knows."""
        return self.vocabulary_size

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer; a ValueError if it has more tokens than the model is to know."""
        if self._tokenizer is None:
            tokenizer = self.make_tokenizer()
            count = token_count(tokenizer)
            if count > self.vocabulary_size:
                raise ValueError(
                    f"vocabulary_size={self.vocabulary_size} is too small: data.tokenizer={self.tokenizer_name} has "
                    f"{count} tokens; use data.vocabulary_size={-(-count // 64) * 64}"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def make_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer; a family that can also make one overrides this."""
        if self.tokenizer_name is None:
            raise ValueError(
                "data.tokenizer is missing: name the folder of the model that is fine-tuned, e.g. "
                "data.tokenizer=runs/m2-bert-mlm"
            )
        return load_tokenizer(self.tokenizer_name)

    def prepare_data(self) -> None:
        """Write the tokenizer into the run's folder; Lightning calls this in one process."""
        if self.trainer is not None:
            self.tokenizer.save_pretrained(self.trainer.default_root_dir)


class TokenRows(ArrayDataset):
    """Framed texts of different lengths, every batch only as long as its longest.

    Args:
        inputs: Tokens, (N, L).
        targets: (N,).
        lengths: (N,).
        token_types: 0 for a first text, 1 for a second, (N, L).
        whole: Give batches of all L steps, for models that read padding.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        lengths: torch.Tensor,
        token_types: torch.Tensor,
        whole: bool = False,
    ) -> None:
        super().__init__(inputs, targets, lengths)
        self.token_types, self.whole = token_types, whole

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        lengths = self.lengths[indices]
        steps = self.inputs.shape[1] if self.whole else int(lengths.max())
        return {
            "inputs": self.inputs[indices, :steps],
            "token_types": self.token_types[indices, :steps],
            "targets": self.targets[indices],
            "lengths": lengths,
        }

    def head(self, count: int) -> "TokenRows":
        """The first samples only."""
        parts = (self.inputs, self.targets, self.lengths, self.token_types)
        return TokenRows(*(part[:count] for part in parts), whole=self.whole)


def frame(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], others: list[str] | None, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut N texts, or pairs of texts, into at most L tokens, framed as BERT's; longer ones are shortened.

    Returned are tokens (N, L), token types (N, L) and lengths (N,), all int64.
    """
    shape = (len(texts), length)
    tokens = torch.full(shape, tokenizer.pad_token_id)
    types, lengths = torch.zeros(shape, dtype=torch.long), torch.ones(len(texts), dtype=torch.long)
    if texts:
        if others is not None:
            # Of a pair that is cut, tokenizers makes as many leftovers as there are pairs of pieces.
            texts, others = _shortened(tokenizer, texts, others, length)
        framed = tokenizer(texts, others, truncation=True, max_length=length, return_token_type_ids=True)
        for number, (row, kinds) in enumerate(zip(framed["input_ids"], framed["token_type_ids"], strict=True)):
            lengths[number] = len(row)
            tokens[number, : len(row)], types[number, : len(row)] = torch.tensor(row), torch.tensor(kinds)
    return tokens, types, lengths


def _shortened(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], others: list[str], length: int
) -> tuple[list[str], list[str]]:
    """Pairs without most of what is cut off anyway; the longer text of a pair stays the longer one."""
    if not tokenizer.is_fast:
        return texts, others
    places = [
        tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        for part in (texts, others)
    ]

    def shortened(part: list[str], own: list[list], other: list[list]) -> list[str]:
        counts = [length + (len(mine) > len(theirs)) for mine, theirs in zip(own, other, strict=True)]
        return [
            text if len(mine) <= count else text[: mine[count - 1][1]]
            for text, mine, count in zip(part, own, counts, strict=True)
        ]

    return shortened(texts, *places), shortened(others, *places[::-1])
