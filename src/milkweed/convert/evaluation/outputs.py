"""What models give, by kind: what is predicted at which places, and the vectors of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from milkweed.convert.hub.inputs import known_tokens
from milkweed.convert.input_moments import attention_mask

IGNORED = -100
HIDDEN_SHARE = 0.15
KINDS = {
    "causal": "a causal language model",
    "masked": "a masked language model",
    "seq2seq": "an encoder-decoder with a language head",
    "classes": "a classifier of texts",
    "labels": "a classifier of texts with several labels",
    "numbers": "a regression",
    "tokens": "a classifier of tokens",
    "spans": "a model that answers questions",
    "encoder": "an encoder without a head",
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A batch, and at which places what is to be predicted."""

    inputs: dict[str, Any]
    labels: Tensor | None = None  # (B, L) tokens, IGNORED elsewhere


def kind_of(model: Any, inputs: Mapping[str, Any], outputs: Any) -> str:
    """What kind of model gives such outputs; a key of `KINDS`."""
    if tensor(outputs, "start_logits") is not None:
        return "spans"
    logits = tensor(outputs, "logits")
    if logits is None:
        return "encoder"
    if logits.ndim == 2:
        several = getattr(model.config, "problem_type", None) == "multi_label_classification"
        return "labels" if several else "numbers" if logits.shape[1] == 1 else "classes"
    if logits.shape[-1] < (known_tokens(model) or 0):
        return "tokens"
    if "decoder_input_ids" in inputs:
        return "seq2seq"
    return "causal" if model.can_generate() else "masked"


def ask(kind: str, inputs: dict[str, Any], mask_token: int | None, special: list[int], seed: int) -> Asked:
    """Make of a batch what a model of some kind is asked: the next tokens, or those that are hidden from it."""
    ids = inputs["input_ids"]
    mask = attention_mask(inputs)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    if kind == "causal":
        following = torch.full_like(ids, IGNORED)
        following[:, :-1] = ids[:, 1:].masked_fill(~(real[:, 1:] & real[:, :-1]), IGNORED)
        return Asked(inputs, following)
    if kind == "masked" and mask_token is not None:
        hidden = _hidden(ids, real & ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype)), seed)
        return Asked(inputs | {"input_ids": ids.masked_fill(hidden, mask_token)}, ids.masked_fill(~hidden, IGNORED))
    return Asked(inputs)


def _hidden(ids: Tensor, words: Tensor, seed: int) -> Tensor:
    """Draw a share of every text's words, at least one of each text that has any."""
    order = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~words, 2.0)
    ranks = order.argsort(1).argsort(1)
    counts = words.sum(1, keepdim=True)
    return (ranks < (counts * HIDDEN_SHARE).round().clamp(min=1)) & words


def tensor(outputs: Any, name: str) -> Tensor | None:
    """One of a model's outputs by name."""
    found = outputs.get(name) if isinstance(outputs, Mapping) else None
    return found if isinstance(found, Tensor) else None


def main_output(outputs: Any) -> Tensor | None:
    """The output that a model is used for: a sentence's vector, hidden states, logits, or the first of its tensors."""
    for name in ("sentence_embedding", "last_hidden_state", "logits", "start_logits"):
        if (found := tensor(outputs, name)) is not None:
            return found
    several = outputs.values() if isinstance(outputs, Mapping) else outputs
    candidates = [outputs] if isinstance(outputs, Tensor) else several
    return next((x for x in candidates if isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1), None)


def text_vectors(outputs: Any, inputs: Mapping[str, Any], pooling: str) -> Tensor:
    """One vector for each text, (B, n) in float64."""
    x = main_output(outputs)
    assert x is not None
    x = x.double()
    if x.ndim == 2:
        return x
    mask = places(x, inputs)
    if pooling == "cls":
        return x[:, 0]
    if pooling == "lasttoken":
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        return x[torch.arange(len(x), device=x.device), last]
    if pooling == "max":
        return x.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def places(x: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Which positions of outputs (B, L, n) are of tokens and not of padding, (B, L)."""
    mask = attention_mask(inputs, "decoder")
    if mask is None or mask.shape != x.shape[:2]:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return mask.to(x.device)


def predictions(kind: str, outputs: Any, asked: Asked) -> Tensor:
    """What a model predicts, a row for everything that is asked."""
    if kind == "spans":
        ends = [tensor(outputs, f"{end}_logits") for end in ("start", "end")]
        return torch.stack([x.argmax(-1) for x in ends if x is not None], -1)
    logits = tensor(outputs, "logits")
    assert logits is not None
    if kind == "labels":
        return logits > 0
    if kind == "classes":
        return logits.argmax(-1)[:, None]
    asked_for = places(logits, asked.inputs) if asked.labels is None else asked.labels.to(logits.device) != IGNORED
    return logits[asked_for].argmax(-1)[:, None]
