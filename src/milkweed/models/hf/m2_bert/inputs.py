"""Masks, labels and outputs of the classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import check_tensor
from milkweed._suggest import unknown
from milkweed.nn.lengths import valid_steps

PROBLEMS = ("multi_label_classification", "regression", "single_label_classification")
# What transformers' collators give where nothing is to be predicted.
IGNORED = -100


def check_mask(mask: Tensor, inputs: Tensor) -> None:
    """Refuse a mask that is not (B, L) as the inputs are."""
    check_tensor("attention_mask", mask)
    if mask.shape != inputs.shape[:2]:
        raise ValueError(
            f"attention_mask must be (B, L) = {tuple(inputs.shape[:2])} as the inputs are; got shape "
            f"{tuple(mask.shape)}"
        )


def lengths_of(mask: Tensor) -> Tensor:
    """(B, L) mask to (B,) numbers of tokens."""
    lengths = mask.sum(-1, dtype=torch.int64)
    if torch.compiler.is_compiling() or mask.is_meta:
        return lengths
    if not torch.equal(mask, valid_steps(lengths, mask.shape[-1]).to(mask.dtype)):
        raise ValueError(
            "attention_mask must be (B, L) with 1 for tokens and 0 for the padding behind them; "
            f"got another mask of shape {tuple(mask.shape)}; use tokenizer.padding_side = 'right'"
        )
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"attention_mask has no token in row {empty[0]}; drop empty texts, or keep their [CLS]")
    return lengths


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the integers (...) that are not -100, of logits (..., C)."""
    check_tensor("labels", labels)
    expected, count = logits.shape[:-1], logits.shape[-1]
    if labels.shape != expected or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape {tuple(expected)}; got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        strange = labels[(labels != IGNORED) & ((labels < 0) | (labels >= count))]
        if strange.numel():
            raise ValueError(
                f"labels must be in 0 .. {count - 1}, or {IGNORED} where nothing is predicted; got {int(strange[0])}"
            )
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)


def classification_loss(config: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of logits (B, C) for classes, several labels at once, or numbers."""
    kind: str | None = config.problem_type
    check_tensor("labels", labels)
    if kind is None:
        several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        kind = "regression" if config.num_labels == 1 else several
    if kind not in PROBLEMS:
        raise ValueError(unknown("config.problem_type", kind, PROBLEMS))
    if kind == "single_label_classification":
        return cross_entropy(logits, labels)
    regression = kind == "regression"
    single = regression and logits.shape[1] == 1 and labels.shape == logits.shape[:1]
    if labels.shape != logits.shape and not single:
        fix = "" if regression else ", 0 or 1 for every class; classes are (B,) integers"
        raise ValueError(
            f"labels must be numbers (B, num_labels) = {tuple(logits.shape)}{fix}; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    labels = labels.reshape(logits.shape).to(logits.dtype)
    return (F.mse_loss if regression else F.binary_cross_entropy_with_logits)(logits, labels)


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """The loss of logits (B, L) for places (B,), which may be behind the text."""
    check_tensor("positions", positions)
    places = positions.reshape(-1).long()
    if places.shape != logits.shape[:1] or positions.is_floating_point():
        raise ValueError(
            f"positions must be integers of shape ({logits.shape[0]},); got {positions.dtype} of shape "
            f"{tuple(positions.shape)}"
        )
    behind = (places < 0) | (places >= logits.shape[1])
    return F.cross_entropy(logits.float(), places.masked_fill(behind, IGNORED), ignore_index=IGNORED)


def named_or_tuple(model: Any, return_dict: bool | None, output: Any) -> Any:
    """An output by names, or as a tuple where that is asked for."""
    wanted = model.config.return_dict if return_dict is None else return_dict
    return output if wanted else output.to_tuple()
