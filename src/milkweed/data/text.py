"""Any text, character by character: the next one is to be told from those before."""

from pathlib import Path

import torch

from milkweed.data.base import SPLITS, SequenceData
from milkweed.data.batches import ArrayDataset


class Text(SequenceData):
    """A UTF-8 text file, cut into windows; the targets are the inputs one character further on.

    The first 90% of the text are for training, the next 5% for validation, the last for the test. The vocabulary is
    made of all characters in the file, by code point.

    Args:
        file: The text.
        batch_size: Windows per optimiser step over all processes together.
        length: L, characters in a window; windows do not overlap.
        seed: Decides the order of the training windows, nothing else.
        limit: At most this many windows per split, for trials.

    Raises:
        ValueError: If `length` is below 1.
    """

    tokens = True

    def __init__(
        self, file: str, batch_size: int = 32, length: int = 128, seed: int = 0, limit: int | None = None
    ) -> None:
        super().__init__(batch_size, seed, limit)
        if length < 1:
            raise ValueError(f"length={length} must be at least 1")
        self.file, self.length = Path(file), length
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The whole text.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no UTF-8.
        """
        if self._text is None:
            if not self.file.is_file():
                raise FileNotFoundError(f"data.file={self.file} is no file; name a text file with --data.file FILE")
            try:
                self._text = self.file.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"data.file={self.file} is no UTF-8 text: {error}; convert it") from error
        return self._text

    @property
    def vocabulary(self) -> str:
        """All characters of the text, sorted; a character's number is its place."""
        return "".join(sorted(set(self.text)))

    @property
    def d_input(self) -> int:
        """Number of different characters."""
        return len(self.vocabulary)

    @property
    def d_output(self) -> int:
        """Number of different characters."""
        return len(self.vocabulary)

    def load(self) -> dict[str, ArrayDataset]:
        """Read the text, number its characters and cut it into windows.

        Returns:
            Datasets under the names `train`, `val` and `test`.

        Raises:
            ValueError: If a part is shorter than one window.
        """
        tokens = encode(self.text, self.vocabulary)
        bounds = [0, len(tokens) * 90 // 100, len(tokens) * 95 // 100, len(tokens)]
        datasets = {}
        for name, first, last in zip(SPLITS, bounds, bounds[1:], strict=False):
            count = (last - first - 1) // self.length
            if count < 1:
                raise ValueError(
                    f"data.file={self.file}: the {name} part has {last - first} characters, fewer than a window and "
                    f"one more; use --data.length {max(1, last - first - 1)} or less, or a longer text"
                )
            inputs, targets = (
                tokens[start : start + count * self.length].reshape(count, self.length) for start in (first, first + 1)
            )
            datasets[name] = ArrayDataset(inputs, targets)
        return datasets


def encode(text: str, vocabulary: str) -> torch.Tensor:
    """Number the characters of a text.

    Args:
        text: The text.
        vocabulary: All characters that there are.

    Returns:
        (len(text),) int64.

    Raises:
        ValueError: If a character is not in the vocabulary.
    """
    numbers = {character: number for number, character in enumerate(vocabulary)}
    strange = set(text) - set(numbers)
    if strange:
        raise ValueError(f"the text holds {min(strange)!r}, which is none of the {len(numbers)} known characters")
    return torch.tensor([numbers[character] for character in text])


def decode(tokens: torch.Tensor, vocabulary: str) -> str:
    """Write numbers as text again.

    Args:
        tokens: (L,) integers.
        vocabulary: All characters that there are.

    Returns:
        The text.
    """
    return "".join(vocabulary[token] for token in tokens.tolist())
