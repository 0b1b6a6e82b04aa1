"""Monarch multiply, by its definition: two block-diagonal products and two permutations."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.ops._epilogue import finish


def monarch_mm(
    x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Follow the four steps of README.md literally: x (batch, k * p) -> (batch, s * l), output s * l_total + l."""
    batch = x.shape[0]
    k, _, p = right.shape
    l, s, r = left.shape  # noqa: E741 - the paper's letter
    middle = torch.einsum("bkp,kqp->bkq", x.reshape(batch, k, p), right)
    middle = middle.reshape(batch, r, l).transpose(1, 2)
    return finish(torch.einsum("blr,lsr->bsl", middle, left).reshape(batch, s * l), bias, activation)
