"""Autoregressive generation of tokens by anything that steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from milkweed._arguments import check_tensor, checked
from milkweed.nn import Stepper


class Steppable(Protocol):
    """A model that gives logits for the next token at every step, and steps."""

    def stepper(self) -> Stepper:
        """The model as a recurrence over tokens."""


@checked
def stream(
    model: Steppable,
    prompt: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue prompts token by token, each at the same cost however long the text is.

    Args:
        model: E.g. a [`milkweed.models.M2Gpt`][], or a [`milkweed.models.SequenceModel`][] with
            ``encoder="embedding"`` and ``pooling="none"``. Prompt and steps together must fit an M2-GPT's ``length``.
        prompt: (B, L) tokens, L >= 1, read at once.
        steps: Tokens to generate.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw among so many likeliest tokens.
        top_p: Draw among the likeliest tokens that together have this probability.
        generator: Random numbers.

    Yields:
        (B,) tokens.

    Raises:
        ValueError: An option is out of range, the model gives no logits per step, or its longest text is shorter.
        TypeError: An option is of another type, or the model has no stepper.

    Example:
        >>> gpt = mw.models.M2Gpt(96, 96, length=64, d_model=32, depth=1)
        >>> for token in mw.models.stream(gpt, torch.zeros(1, 3, dtype=torch.long), 2, temperature=0.8):
        ...     print(token.shape)
        torch.Size([1])
        torch.Size([1])
    """
    _check(prompt, steps, temperature, top_k, top_p)
    if not hasattr(model, "stepper"):
        raise TypeError(f"model must step token by token, e.g. an M2Gpt; {type(model).__name__} has no stepper()")
    longest = getattr(model, "length", None)
    # The last token is not read.
    if longest is not None and prompt.ndim == 2 and prompt.shape[1] + steps - 1 > longest:
        raise ValueError(
            f"prompt and steps must fit the model's length={longest}; got {prompt.shape[1]} tokens and steps={steps}; "
            f"use steps={max(0, longest + 1 - prompt.shape[1])} or less, or cut the prompt at its start"
        )
    stepper = model.stepper()
    logits, state = stepper.read(prompt, stepper.initial_state(prompt.shape[0]))
    if logits.ndim != 3:
        raise ValueError(f"the model must give logits for every step, pooling='none'; got shape {tuple(logits.shape)}")
    logits = logits[:, -1]
    for step in range(steps):
        tokens = _draw(logits, temperature, top_k, top_p, generator)
        yield tokens
        if step + 1 < steps:
            logits, state = stepper(tokens, state)


@checked
def generate(model: Steppable, prompt: Tensor, steps: int, **options: Any) -> Tensor:
    """Continue prompts; see [`stream`][milkweed.models.stream], which gives the tokens one by one.

    Args:
        model: The model.
        prompt: (B, L) tokens.
        steps: Tokens to generate.
        **options: ``temperature``, ``top_k``, ``top_p``, ``generator``.

    Returns:
        (B, L + steps) tokens, the prompt first.

    Example:
        >>> gpt = mw.models.M2Gpt(96, 96, length=64, d_model=32, depth=1)
        >>> mw.models.generate(gpt, torch.zeros(2, 3, dtype=torch.long), 5, top_k=10).shape
        torch.Size([2, 8])
    """
    return torch.cat([prompt, *(tokens[:, None] for tokens in stream(model, prompt, steps, **options))], 1)


def _check(prompt: Tensor, steps: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    check_tensor("prompt", prompt)
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ValueError(f"prompt must be (B, L) tokens with L >= 1; got shape {tuple(prompt.shape)}")
    if prompt.dtype not in {torch.int64, torch.int32}:
        raise ValueError(f"prompt: tokens must be (B, L) integers, int64 or int32; got {prompt.dtype}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0; got {steps}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite; got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1; got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0, at most 1; got {top_p}")


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    # From the largest on down, which is 0 whatever it is divided by: large quotients are not finite.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(torch.float32).tiny)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -math.inf)
    if top_p is not None:
        ordered, index = logits.softmax(-1).sort(-1, descending=True)
        # The token that crosses the bound is kept; before it there is less.
        beyond = ordered.cumsum(-1) - ordered >= top_p
        logits = logits.masked_fill(beyond.gather(-1, index.argsort(-1)), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
