"""Tokenised texts in batches that a model can be called with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.inputs import failure, first_line, known_tokens, longest_input, with_decoder
from milkweed.convert.hub.memory import give_back
from milkweed.convert.hub.source import Source
from milkweed.convert.sites import find_sites

Row = dict[str, list[int]]


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
    tokenizer = ready_tokenizer(source)
    rows = [row for row in tokenised(source, tokenizer, model, texts, max_length) if row["input_ids"]]
    if not rows:
        raise FolderError(f"the tokenizer of {source.name} finds no token in the texts")
    _warn_of_few(sum(len(row["input_ids"]) for row in rows), model, steps)
    batches = [batch for _, batch in padded(tokenizer, model, rows, batch_size)]
    error = failure(model, batches[0])
    if error is not None:
        raise FolderError(
            f"{source.name}, a {type(model).__name__}, does not run on texts alone "
            f"({type(error).__name__}: {first_line(error)}); convert it without texts"
        ) from error
    return WatchedBatches(batches, steps)


def ready_tokenizer(source: Source) -> Any:
    """Read a tokenizer, with a token to pad with."""
    tokenizer = source.tokenizer()
    if tokenizer.pad_token is None:
        # Any token does, since the mask hides it.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def tokenised(
    source: Source, tokenizer: Any, model: nn.Module, texts: Sequence[str | tuple[str, ...]], max_length: int
) -> list[Row]:
    """Tokenise texts, or pairs of them with the types of their tokens; all tokens are ones that the model knows."""
    longest = min(max_length, tokenizer.model_max_length, longest_input(model) or max_length)
    columns = [[text] if isinstance(text, str) else list(text) for text in texts]
    found = tokenizer(*map(list, zip(*columns, strict=True)), truncation=True, max_length=longest)
    names = ["input_ids"]
    if columns and len(columns[0]) > 1 and "token_type_ids" in found:
        names.append("token_type_ids")
    rows = [{name: found[name][index] for name in names} for index in range(len(columns))]
    embeddings = known_tokens(model)
    highest = max((token for row in rows for token in row["input_ids"]), default=0)
    if embeddings is not None and highest >= embeddings:
        raise FolderError(
            f"the tokenizer of {source.name} does not fit the model: token {highest}, but {embeddings} embeddings"
        )
    return rows


def padded(
    tokenizer: Any, model: nn.Module, rows: Sequence[Row], batch_size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Pad rows of similar length together, the longest first; with each batch come the places of its rows."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        together = {name: [rows[index][name] for index in chosen] for name in rows[chosen[0]]}
        yield chosen, with_decoder(model, dict(tokenizer.pad(together, return_tensors="pt")))


def _warn_of_few(tokens: int, model: nn.Module, steps: Progress) -> None:
    widest = max(site.in_features for site in find_sites(model))
    if tokens < 2 * widest:
        steps.warn(
            f"{tokens:,} tokens are few for layers of up to {widest:,} inputs; errors will look better than they are. "
            "Give more texts"
        )
