"""Tokenised texts in batches that a model can be called with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.inputs import failure, first_line, known_tokens, longest_input, with_decoder
from milkweed.convert.hub.memory import give_back
from milkweed.convert.hub.source import Source
from milkweed.convert.sites import find_sites


class WatchedBatches(list[dict[str, Any]]):
    """Batches that show how far each pass over them is, and after it return the memory that the model's work took."""

    def __init__(self, batches: list[dict[str, Any]], steps: Progress) -> None:
        super().__init__(batches)
        self.steps = steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.steps.read(super().__iter__(), len(self))
        give_back()


def make_batches(
    source: Source, model: nn.Module, texts: list[str], max_length: int, batch_size: int, steps: Progress
) -> WatchedBatches:
    """Tokenise texts and pad those of similar length together, the longest first."""
    tokenizer = source.tokenizer()
    if tokenizer.pad_token is None:
        # Any token does, since the mask hides it.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    longest = min(max_length, tokenizer.model_max_length, longest_input(model) or max_length)
    rows = [ids for ids in tokenizer(texts, truncation=True, max_length=longest)["input_ids"] if ids]
    if not rows:
        raise FolderError(f"the tokenizer of {source.name} finds no token in the texts")
    embeddings = known_tokens(model)
    highest = max(max(ids) for ids in rows)
    if embeddings is not None and highest >= embeddings:
        raise FolderError(
            f"the tokenizer of {source.name} does not fit the model: token {highest}, but {embeddings} embeddings"
        )
    _warn_of_few(sum(map(len, rows)), model, steps)
    rows.sort(key=len, reverse=True)
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    padded = [dict(tokenizer.pad({"input_ids": group}, return_tensors="pt")) for group in groups]
    batches = WatchedBatches([with_decoder(model, batch) for batch in padded], steps)
    error = failure(model, batches[0])
    if error is not None:
        raise FolderError(
            f"{source.name}, a {type(model).__name__}, does not run on texts alone "
            f"({type(error).__name__}: {first_line(error)}); convert it without texts"
        ) from error
    return batches


def _warn_of_few(tokens: int, model: nn.Module, steps: Progress) -> None:
    widest = max(site.in_features for site in find_sites(model))
    if tokens < 2 * widest:
        steps.warn(
            f"{tokens:,} tokens are few for layers of up to {widest:,} inputs; errors will look better than they are. "
            "Give more texts"
        )
