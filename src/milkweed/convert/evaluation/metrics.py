"""Which figures there are, and those that a user brings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from milkweed._arguments import plain
from milkweed._suggest import unknown
from milkweed.convert.evaluation.comparisons import SAME, Agreement, Comparison, Cosine, OutputError, Perplexity
from milkweed.convert.evaluation.held_out import HeldOut
from milkweed.convert.evaluation.outputs import KINDS
from milkweed.convert.evaluation.results import Figure
from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.sites import checksum


class ChangedModelError(FolderError):
    """A metric changed the model that it measures: whatever is written of it would be wrong."""


Metric = Callable[..., Any]
ON_TEXTS = ("agreement", "cosine", "error", "perplexity")
ON_TABLES = ("accuracy", "spearman")
METRICS = (*ON_TEXTS, *ON_TABLES)
# What is looked at where nothing is asked for; the first counts.
_USUAL = {
    "causal": ("perplexity", "agreement"),
    "masked": ("perplexity", "agreement"),
    "seq2seq": ("agreement", "error"),
    "classes": ("agreement", "error"),
    "labels": ("agreement", "error"),
    "numbers": ("error",),
    "tokens": ("agreement", "error"),
    "spans": ("agreement", "error"),
    "encoder": ("cosine",),
}


def check_metric(metric: str | Metric | None) -> None:
    """Refuse names that are not known, and functions that cannot be called with a model."""
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
    elif metric is not None:
        takes_batches(metric)


def takes_batches(metric: Metric) -> bool:
    """Whether a metric takes held-out batches beside the model."""
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # of some built in ones nothing is known
        return True
    for count in (2, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count == 2
    name = getattr(metric, "__name__", type(metric).__name__)
    raise TypeError(f"metric must be callable as metric(model, held_out) or metric(model); got {name}{signature}")


def usual_comparisons(kind: str, pooling: str, can_hide: bool) -> list[Comparison]:
    """The comparisons that say most about a model of some kind."""
    names = [name for name in _USUAL[kind] if name != "perplexity" or can_hide or kind == "causal"]
    return [comparison(name, kind, pooling, can_hide) for name in names]


def comparison(name: str, kind: str, pooling: str, can_hide: bool) -> Comparison:
    """Make a comparison by its name; refused is one that a model of this kind gives no outputs for."""
    if name == "cosine":
        return Cosine(pooling)
    if name == "error":
        return OutputError()
    if name == "perplexity" and (kind == "causal" or (kind == "masked" and can_hide)):
        return Perplexity(hidden=kind == "masked")
    if name == "agreement" and kind in SAME:
        return Agreement(kind)
    needs = "predicts tokens" if name == "perplexity" else "predicts classes or tokens"
    without = "" if can_hide or kind != "masked" else " whose tokenizer has no mask token"
    raise FolderError(
        f"metric={name!r} needs a model that {needs}, and this one is {KINDS[kind]}{without}; use metric='cosine', or "
        "leave it out"
    )


def own_values(metric: Metric, model: Any, held_out: HeldOut, which: str) -> dict[str, float]:
    """Call a user's metric: its numbers by name."""
    name = getattr(metric, "__name__", type(metric).__name__)
    before = _noted(model)
    try:
        given = metric(model, held_out) if takes_batches(metric) else metric(model)
    except Exception as error:  # of code that is not ours, so of any kind
        raise FolderError(
            f"the metric {name} failed on the {which} model: {type(error).__name__}: {first_line(error)}"
        ) from error
    after = _noted(model)
    changed = next((key for key in before | after if before.get(key) != after.get(key)), None)
    if changed is not None:
        raise ChangedModelError(
            f"the metric {name} changed the {which} model, {changed} first, which is then written; let it compute on a "
            "copy.deepcopy of the model"
        )
    values = given if isinstance(given, Mapping) else {name: given}
    found = {str(key): plain(value) for key, value in values.items()}
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FolderError(
                f"the metric {name} must give a number, or numbers by name; got {type(value).__name__} for {key}"
            )
    if not found:
        raise FolderError(f"the metric {name} gave no number")
    return {key: float(value) for key, value in found.items()}


def _noted(model: nn.Module) -> dict[str, tuple[object, ...]]:
    """Shape, dtype and a checksum of every tensor of a model."""
    state = model.state_dict(keep_vars=True)
    return {name: (value.shape, value.dtype, checksum(value)) for name, value in state.items() if value.numel()}


def own_figures(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[Figure, ...]:
    """Set a user's numbers side by side."""
    if before.keys() != after.keys():
        raise FolderError(
            f"the metric gave {', '.join(before)} for the dense model and {', '.join(after)} for the converted one; "
            "give numbers of the same names each time"
        )
    return tuple(Figure(name, value, before.get(name), detail="your own metric") for name, value in after.items())
