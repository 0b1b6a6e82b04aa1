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
    """Mean and spread of the inputs x of one layer.

    Args:
        count: How many inputs.
        mean: (n,), E[x], in float64.
        scatter: (n, n), the sum of (x - mean) (x - mean)ᵀ, in float64.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> InputMoments:
        """Sum up inputs.

        Args:
            x: (rows, n), rows at least 1.

        Returns:
            Their moments; products are of x's precision, float32 at least.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, centred = centre(x)
        return cls(len(x), mean, (centred.T @ centred).double())

    def merge(self, new: InputMoments) -> None:
        """Take further inputs in.

        Args:
            new: Their moments.
        """
        # Sums of squares about zero would lose what is small beside the mean.
        total = self.count + new.count
        step = new.mean - self.mean
        self.scatter += new.scatter + step.outer(step) * (self.count * new.count / total)
        self.mean = self.mean + step * (new.count / total)
        self.count = total

    def covariance(self, centred: bool) -> Tensor:
        """Give the second moments.

        Args:
            centred: For a layer with a bias, which makes up for the mean of any error.

        Returns:
            E[x xᵀ], centred less E[x] E[x]ᵀ.
        """
        spread = self.scatter / self.count
        return spread if centred else spread + self.mean.outer(self.mean)

    def reordered(self, order: Tensor) -> InputMoments:
        """Put the inputs into another order.

        Args:
            order: (n,), which of them stands at each place.

        Returns:
            The moments of the reordered inputs.
        """
        return InputMoments(self.count, self.mean[order], self.scatter[order][:, order])


def centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split inputs into their mean and what is left.

    Args:
        x: (rows, n).

    Returns:
        (n,) in float64, and (rows, n) in x's dtype, rounded after the subtraction.
    """
    wide = x.double()
    mean = wide.mean(0)
    return mean, (wide - mean).to(x.dtype)


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


def attention_mask(batch: Any, layer: str = "") -> Tensor | None:
    """Find which positions of a batch count.

    Args:
        batch: As for `run_batch`.
        layer: Name of the layer whose inputs are meant: those of a decoder beside an encoder have a mask of their own.

    Returns:
        A boolean mask (B, L), or None if all do.
    """
    mask = batch.get(_mask_name(batch, layer)) if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _mask_name(batch: Any, layer: str) -> str:
    decodes = isinstance(batch, Mapping) and "decoder_input_ids" in batch and "decoder" in layer.split(".")
    return "decoder_attention_mask" if decodes else "attention_mask"


def model_outputs(model: nn.Module, batches: Iterable[Any]) -> list[Tensor]:
    """Run a model in evaluation mode and keep its first output of more than one dimension, padding aside.

    Args:
        model: The model.
        batches: As for `run_batch`.

    Returns:
        (rows, n) for each batch, in float32 at least.

    Raises:
        ValueError: There is no such output.
    """
    found = []
    with evaluating(model):
        for batch in batches:
            outputs = run_batch(model, batch)
            several = outputs.values() if isinstance(outputs, Mapping) else outputs
            candidates = [outputs] if isinstance(outputs, Tensor) else several
            first = next(
                (x for x in candidates if isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1), None
            )
            if first is None:
                raise ValueError("the model gives no floating-point tensor of two dimensions or more to compare")
            rows = valid_rows(first, attention_mask(batch))
            found.append(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    return found


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
    latest: tuple[Reading, InputMoments] | None = None  # query, key and value read one tensor: its product is shared

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal latest
            reading = Reading.of(name, inputs, batch)
            if latest is None or not latest[0].same_as(reading):
                rows = valid_rows(reading.x, attention_mask(batch, name))
                if not len(rows):
                    return
                latest = (reading, InputMoments.of(rows))
            if name in found:
                found[name].merge(latest[1])
            else:
                found[name] = dataclasses.replace(latest[1], scatter=latest[1].scatter.clone())

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for batch in batches:
                latest = None
                run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    _check(layers, found)
    return found


@dataclasses.dataclass(frozen=True)
class Reading:
    """A tensor as a layer read it; it may be changed in place before the next layer reads it.

    Args:
        x: The tensor.
        version: How often it had been changed, None if that is not counted.
        mask: What the batch calls the mask of its positions.
    """

    x: Tensor
    version: int | None
    mask: str

    @classmethod
    def of(cls, name: str, inputs: tuple[Any, ...], batch: Any) -> Reading:
        """Take what a layer was called with.

        Args:
            name: The layer's.
            inputs: Its arguments.
            batch: What the model was called with.

        Returns:
            The first argument.

        Raises:
            ValueError: There is none, it is no tensor, or has no numbers.
        """
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ValueError(
                f"layer {name!r} is not called with a tensor as its first argument, as linear layers are; skip it with "
                f"the rule {{{name!r}: None}}"
            )
        x = inputs[0]
        if x.is_meta:
            raise ValueError(f"layer {name!r} was given a tensor on the meta device; calibration needs numbers")
        return cls(x, None if x.is_inference() else x._version, _mask_name(batch, name))

    def same_as(self, other: Reading) -> bool:
        """Tell whether two layers read the same numbers.

        Args:
            other: What the other one read.

        Returns:
            Whether they did, as far as can be known.
        """
        known = self.version is not None
        return known and self.x is other.x and (self.version, self.mask) == (other.version, other.mask)


def _check(layers: Mapping[str, nn.Module], found: Mapping[str, InputMoments]) -> None:
    if not found:
        raise ValueError(
            "calibration reached none of the layers to convert; it must yield at least one batch that the model "
            f"accepts, and the model must call {next(iter(layers))}"
        )
    for name in layers:
        if name not in found:
            raise ValueError(f"calibration never reached layer {name!r}; skip it with the rule {{{name!r}: None}}")
        if not (found[name].mean.isfinite().all() and found[name].scatter.isfinite().all()):
            raise ValueError(
                f"calibration gave layer {name!r} inputs that are NaN, infinite or too large to square; "
                "clean the batches"
            )
