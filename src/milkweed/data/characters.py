"""Characters as numbers, by their places in a vocabulary, and back."""

import numpy as np
import torch


def numbers(text: str, vocabulary: str) -> np.ndarray:
    """Number the characters of a text by a vocabulary that is sorted by code point and holds them all."""
    points, known = (np.frombuffer(each.encode("utf-32-le"), np.uint32) for each in (text, vocabulary))
    return np.searchsorted(known, points)


def encode(text: str, vocabulary: str) -> torch.Tensor:
    """Number the characters of a text, (len(text),) int64; a ValueError if the vocabulary lacks one."""
    strange = set(text) - set(vocabulary)
    if strange:
        raise ValueError(f"the text holds {min(strange)!r}, which is not among the {len(vocabulary)} known characters")
    return torch.from_numpy(numbers(text, vocabulary))


def decode(tokens: torch.Tensor, vocabulary: str) -> str:
    """Write numbers (L,) as text again."""
    return "".join(vocabulary[token] for token in tokens.tolist())
