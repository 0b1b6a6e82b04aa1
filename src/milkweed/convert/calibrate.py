"""What the layers of a model read: second moments of their inputs over calibration batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Bytes for second moments at a time, or half the size of the model if that is more.
_LEAST_MEMORY = 2**28


@dataclasses.dataclass
class InputMoments:
    """Sums over the inputs x of one layer.

    Args:
        outer: (n, n), the sum of x xᵀ, in float64.
        total: (n,), the sum of x.
        count: How many inputs.
    """

    outer: Tensor
    total: Tensor
    count: int = 0

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self.total / self.count

    def covariance(self, centred: bool) -> Tensor:
        """Give the second moments.

        Args:
            centred: For a layer with a bias, which makes up for the mean of any error.

        Returns:
            E[x xᵀ], centred less E[x] E[x]ᵀ.
        """
        second = self.outer / self.count
        return second - self.mean.outer(self.mean) if centred else second

    def reordered(self, order: Tensor) -> InputMoments:
        """Give the moments of the same inputs in another order.

        Args:
            order: (n,), the input at each place.

        Returns:
            The moments.
        """
        return InputMoments(self.outer[order][:, order], self.total[order], self.count)


class Calibration:
    """What the layers of a model read over batches, in bounded memory: ``calibration[name]`` are the layer's moments.

    If the moments of all layers need more memory than the limit, the batches are run several times, each time for as
    many layers as fit, and the moments of the others are forgotten; ask for layers in their order.

    Args:
        model: Run in evaluation mode without gradients; afterwards in its former mode.
        layers: The layers by name, each with ``in_features`` or a transposed weight.
        batches: What the model is called with: a mapping of keyword arguments, a tuple of arguments, or one tensor.
            Positions where a mapping's ``attention_mask`` is 0 do not count.
        memory_limit: Bytes; half the size of the model by default, at least 256 MiB.

    Raises:
        TypeError: The batches cannot be run through again where they must be, or are tensors themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        batches: Iterable[Any],
        *,
        memory_limit: int | None = None,
    ) -> None:
        if isinstance(batches, Tensor | Mapping | str):
            raise TypeError(f"calibration must be an iterable of batches, e.g. a list; got a {type(batches).__name__}")
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        limit = max(_LEAST_MEMORY, size // 2) if memory_limit is None else memory_limit
        self._model, self._layers, self._batches = model, layers, batches
        self._groups = list(_groups(layers, limit))
        self._moments: dict[str, InputMoments] = {}
        if len(self._groups) > 1 and not isinstance(batches, Sequence):
            raise TypeError(
                f"calibration must be a list, not an iterator: the moments of {len(layers)} layers take more than "
                f"{limit / 2**30:.1f} GiB, so that it is run {len(self._groups)} times; use list(batches)"
            )

    def __getitem__(self, name: str) -> InputMoments:
        """Give the moments of a layer, after a run over the batches if they are not at hand.

        Args:
            name: The layer's.

        Returns:
            The moments.

        Raises:
            ValueError: There is no batch, a layer was never reached, or it read NaN or infinity.
        """
        if name not in self._moments:
            (group,) = (group for group in self._groups if name in group)
            self._moments.clear()  # before, not after, the others are gathered
            self._moments = _one_pass(self._model, {name: self._layers[name] for name in group}, self._batches)
        return self._moments[name]


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch, moved to where its parameters are.

    Args:
        model: The model.
        batch: A mapping of keyword arguments, a tuple or list of arguments, or one tensor.

    Returns:
        The model's output.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        return model(**{key: move(value) for key, value in batch.items()})
    if isinstance(batch, tuple | list):
        return model(*[move(value) for value in batch])
    return model(move(batch))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and every module back into its own mode afterwards.

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def attention_mask(batch: Any) -> Tensor | None:
    """Find which positions of a batch count.

    Args:
        batch: As for `run_batch`.

    Returns:
        A boolean mask (B, L), or None if all do.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def model_outputs(model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """Run a model in evaluation mode and keep its first output, padding aside.

    Args:
        model: The model.
        batches: As for `run_batch`.

    Returns:
        (rows, n), in float32 at least.
    """
    found = []
    with evaluating(model):
        for batch in batches:
            outputs = run_batch(model, batch)
            first = outputs if isinstance(outputs, Tensor) else outputs[0]
            found.append(valid_rows(first, attention_mask(batch)))
    rows = torch.cat(found)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def valid_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Flatten a layer's inputs to rows, without those of padding.

    Args:
        x: (..., n).
        mask: (B, L) or None; used where it has x's leading shape.

    Returns:
        (rows, n).
    """
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask.to(x.device)]
    return x.reshape(-1, x.shape[-1])


def _groups(layers: Mapping[str, nn.Module], memory_limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name, layer in layers.items():
        size = 8 * _in_features(layer) ** 2
        if group and used + size > memory_limit:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _in_features(layer: nn.Module) -> int:
    return int(getattr(layer, "in_features", 0) or getattr(layer, "nx", 0))  # Conv1D names it nx


def _one_pass(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, InputMoments]:
    found: dict[str, InputMoments] = {}
    mask: Tensor | None = None
    latest: tuple[Tensor, InputMoments] | None = None  # query, key and value read one tensor: its product is shared

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal latest
            x = inputs[0]
            if latest is None or latest[0] is not x:
                rows = valid_rows(x, mask)
                rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
                latest = (x, InputMoments((rows.T @ rows).double(), rows.sum(0, dtype=torch.float64), len(rows)))
            new = latest[1]
            if name not in found:
                found[name] = InputMoments(torch.zeros_like(new.outer), torch.zeros_like(new.total))
            found[name].outer += new.outer
            found[name].total += new.total
            found[name].count += new.count

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for batch in batches:
                mask, latest = attention_mask(batch), None
                run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    _check(layers, found)
    return found


def _check(layers: Mapping[str, nn.Module], found: Mapping[str, InputMoments]) -> None:
    if not found:
        raise ValueError(
            "calibration reached none of the layers to convert; it must yield at least one batch that the model "
            f"accepts, and the model must call {next(iter(layers))}"
        )
    for name in layers:
        if name not in found or found[name].count == 0:
            raise ValueError(f"calibration never reached layer {name!r}; skip it with the rule {{{name!r}: None}}")
        if not found[name].outer.isfinite().all():
            raise ValueError(f"calibration gave layer {name!r} NaN or infinite inputs; clean the batches")
