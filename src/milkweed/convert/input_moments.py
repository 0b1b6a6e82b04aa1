"""What the layers of a model read: second moments of their inputs over calibration batches."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor, nn

from milkweed.convert.routing import Routing

# Bytes for second moments at a time, or an eighth of the size of the model if that is more.
_LEAST_MEMORY = 96 * 2**20
# Inputs that are looked at together, and rows of a matrix of moments that lie together.
_ROWS, _HEIGHT = 1024, 256


class InputMoments:
    """Mean and spread of the inputs of one layer, summed up in little more than half the memory of a matrix."""

    def __init__(self, n: int, device: torch.device | str = "cpu", prior: int = 0) -> None:
        self.count, self.prior = 0, prior
        self.mean = torch.zeros(n, dtype=torch.float64, device=device)
        # The sum of (x - mean) (x - mean)ᵀ is symmetric: some rows together, up to the diagonal.
        self._strips = [self.mean.new_zeros(stop - start, stop) for start, stop in strips(n)]

    @staticmethod
    def bytes(n: int) -> int:
        """Bytes that the moments of inputs of size n take."""
        return sum(8 * (stop - start) * stop for start, stop in strips(n))

    def add(self, x: Tensor) -> Tensor:
        """Add inputs (rows, n); returns a matrix (rows + 1, n) whose transpose times itself is what was added."""
        wide = x.double()
        mean = wide.mean(0)
        # Sums of squares about zero would lose what is small beside the mean.
        total = self.count + len(x)
        step = mean - self.mean
        moved = step * (self.count * len(x) / total) ** 0.5
        dtype = torch.promote_types(x.dtype, torch.float32)
        centred = torch.cat([(wide - mean).to(dtype), moved[None].to(dtype)])
        for strip, (start, stop) in self._by_strips():
            strip += centred[:, start:stop].T @ centred[:, :stop]
        self.mean += step * (len(x) / total)
        self.count = total
        return centred

    def covariance(self, centred: bool) -> Tensor:
        """E[x xᵀ] in float64, exactly symmetric; less E[x] E[x]ᵀ if centred, as for a layer with a bias."""
        # A prior counts as so many inputs more, which have as much energy in every direction.
        found = self._covariance(centred)
        if self.prior:
            even = found.trace() / len(found)
            found.mul_(self.count / (self.count + self.prior))
            found.diagonal().add_(even * (self.prior / (self.count + self.prior)))
        return found

    def _covariance(self, centred: bool) -> Tensor:
        found = self.mean.new_empty(len(self.mean), len(self.mean))
        for strip, (start, stop) in self._by_strips():
            rows = torch.div(strip, max(1, self.count), out=found[start:stop, :stop])
            if not centred:
                rows.addr_(self.mean[start:stop], self.mean[:stop])
            corner = rows[:, start:]  # a product of float32 need not be quite symmetric
            corner.copy_(corner.tril() + corner.tril(-1).T)
            found[:start, start:stop] = rows[:, :start].T
        return found

    def energy(self, weight: Tensor, centred: bool) -> float:
        """E‖weight x‖² of a weight (m, n), about the mean if centred; products are in the weight's precision."""
        found = 0.0
        for strip, (start, stop) in self._by_strips():
            passed = weight[:, start:stop] @ (strip / max(1, self.count)).to(weight.dtype)
            passed[:, :start] *= 2  # for the other half of the matrix
            found += float(passed.mul_(weight[:, :stop]).sum(dtype=torch.float64))
        if not centred:
            found += float((weight @ self.mean.to(weight.dtype)).square().sum(dtype=torch.float64))
        return found

    def reordered(self, order: Tensor) -> InputMoments:
        """The moments of reordered inputs; ``order`` (n,) says which of them stands at each place."""
        found = InputMoments(len(order), order.device, self.prior)
        found.count, found.mean = self.count, self.mean[order]
        whole = self._covariance(centred=True).mul_(self.count)
        for strip, (start, stop) in found._by_strips():
            strip.copy_(whole[order[start:stop]][:, order[:stop]])
        return found

    def is_finite(self) -> bool:
        """Whether all inputs were finite and could be squared."""
        return all(bool(each.isfinite().all()) for each in (self.mean, *self._strips))

    def _by_strips(self) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """The rows start to stop, in columns up to stop."""
        return zip(self._strips, strips(len(self.mean)), strict=True)


def strips(n: int) -> list[tuple[int, int]]:
    """The first row of each strip of a matrix and the one after its last: work on strips takes little memory."""
    return [(start, min(start + _HEIGHT, n)) for start in range(0, n, _HEIGHT)]


class Calibration:
    """What the layers of a model read over batches, in bounded memory: ``calibration[name]`` are the layer's moments.

    If the moments of all layers need more memory than the limit, the batches are run several times, each time for as
    many layers as fit and no further into the model than these, and the moments of the others are forgotten; ask for
    layers in their order.

    Args:
        model: Run in evaluation mode without gradients; afterwards in its former mode.
        layers: The layers by name, each with ``in_features`` or a transposed weight.
        batches: What the model is called with: a mapping of keyword arguments, a tuple of arguments, or one tensor.
            Positions where a mapping's ``attention_mask`` is 0 do not count.
        unsure: Layers that few inputs may reach or none, as those of an expert. Their covariances are drawn towards
            even ones, as if by one input for each direction; of no inputs they are 0.
        memory_limit: Bytes; an eighth of the size of the model by default, at least 96 MiB.

    Raises:
        TypeError: The batches cannot be run through again where they must be, or are tensors themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        batches: Iterable[Any],
        *,
        unsure: Collection[str] = (),
        memory_limit: int | None = None,
    ) -> None:
        if isinstance(batches, Tensor | Mapping | str):
            raise TypeError(f"calibration must be an iterable of batches, e.g. a list; got a {type(batches).__name__}")
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        limit = max(_LEAST_MEMORY, size // 8) if memory_limit is None else memory_limit
        self._model, self._layers, self._batches, self._unsure = model, layers, batches, unsure
        self._groups = list(_groups(layers, limit))
        self._moments: dict[str, InputMoments] = {}
        self._calls: list[Counter[str]] = []  # how often each batch calls each layer, once there has been a pass
        if len(self._groups) > 1 and not isinstance(batches, Sequence):
            raise TypeError(
                f"calibration must be a list, not an iterator: the moments of {len(layers)} layers take more than "
                f"{limit / 2**30:.1f} GiB, so that it is run {len(self._groups)} times; use list(batches)"
            )

    def __getitem__(self, name: str) -> InputMoments:
        """The moments of a layer, after a run over the batches if they are not at hand."""
        if name not in self._moments:
            (group,) = (group for group in self._groups if name in group)
            self._moments.clear()  # before, not after, the others are gathered
            self._moments = self._gather({name: self._layers[name] for name in group})
        return self._moments[name]

    def _gather(self, layers: Mapping[str, nn.Module]) -> dict[str, InputMoments]:
        """Run the batches and sum up what some layers read."""
        found: dict[str, InputMoments] = {}
        called: Counter[str] = Counter()
        enough: Counter[str] | None = None
        routing = Routing(self._model)

        def watch(name: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                called[name] += 1
                if name in layers:
                    x = tensor_read(name, inputs)
                    for rows in valid_rows(x, routing.mask(name, attention_mask(batch, name))):
                        if name not in found:
                            found[name] = self._moments_of(name, x.device)
                        found[name].add(rows)
                if called == enough:
                    raise ReachedError

            return hook

        # The first pass also notes how often each batch calls each layer, so that later ones can end early.
        first, noted = not self._calls, []
        watched = self._layers if first else layers
        handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in watched.items()]
        try:
            with evaluating(self._model):
                for batch, calls in zip(self._batches, repeat(None) if first else self._calls, strict=not first):
                    called.clear()
                    enough = None if calls is None else Counter({name: calls[name] for name in layers})
                    if enough is None or enough.total():
                        with routing.noted():
                            run_until_reached(self._model, batch)
                    noted.append(called.copy())
        finally:
            for handle in handles:
                handle.remove()
        if first:
            self._calls = noted
        if not sum(calls.total() for calls in self._calls):
            raise ValueError(
                "calibration reached none of the layers to convert; it must yield at least one batch that the model "
                f"accepts, and the model must call {next(iter(layers))}"
            )
        for name in layers.keys() & self._unsure - found.keys():
            found[name] = self._moments_of(name, cast(Tensor, layers[name].weight).device)
        _check(layers, found)
        return found

    def _moments_of(self, name: str, device: torch.device) -> InputMoments:
        n = _in_features(self._layers[name])
        return InputMoments(n, device, n if name in self._unsure else 0)


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch, moved to its device: a mapping, a tuple or list, or one tensor."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, str):
        raise TypeError(
            "a batch (of calibration, for example) must be tensors, as tokenizer(texts, return_tensors='pt') gives; "
            f"got the text {batch!r:.60}"
        )

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        return model(**{key: move(value) for key, value in batch.items()})
    if isinstance(batch, tuple | list):
        return model(*[move(value) for value in batch])
    return model(move(batch))


class ReachedError(Exception):
    """Raised by a hook to end a forward pass that has reached all that is looked for."""


def run_until_reached(model: nn.Module, batch: Any) -> None:
    """Call a model with a batch, to its end or until a hook raises `ReachedError`."""
    with suppress(ReachedError):
        run_batch(model, batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def attention_mask(batch: Any, layer: str = "") -> Tensor | None:
    """The mask (B, L) of the positions that a layer reads, None for all; a decoder may have one of its own."""
    mask = batch.get(_mask_name(batch, layer)) if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _mask_name(batch: Any, layer: str) -> str:
    decodes = isinstance(batch, Mapping) and "decoder_input_ids" in batch and "decoder" in layer.split(".")
    return "decoder_attention_mask" if decodes else "attention_mask"


def model_outputs(model: nn.Module, batches: Iterable[Any]) -> list[Tensor]:
    """Each batch's first output of two dimensions or more, (rows, n) in float32 at least, without padding."""
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
            rows = torch.cat(list(valid_rows(first, attention_mask(batch))))
            found.append(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    return found


def valid_rows(x: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """Flatten inputs (..., n) to rows (rows, n), some at a time, without the padding of a mask (B, L) that fits."""
    rows = x.reshape(-1, x.shape[-1])
    if mask is None or x.shape[:-1] != mask.shape or mask.all():
        chunks: Iterable[Tensor] = rows.split(_ROWS)
    else:
        chunks = (rows[places] for places in mask.to(x.device).flatten().nonzero()[:, 0].split(_ROWS))
    return (chunk for chunk in chunks if len(chunk))


def _groups(layers: Mapping[str, nn.Module], memory_limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name, layer in layers.items():
        size = InputMoments.bytes(_in_features(layer))
        if group and used + size > memory_limit:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _in_features(layer: nn.Module) -> int:
    return int(getattr(layer, "in_features", 0) or getattr(layer, "nx", 0))  # Conv1D names it nx


def tensor_read(name: str, inputs: tuple[Any, ...]) -> Tensor:
    """The tensor that a layer was called with; a ValueError if there is none, or it has no numbers."""
    if not inputs or not isinstance(inputs[0], Tensor):
        raise ValueError(
            f"calibration: layer {name!r} is not called with a tensor as its first argument, as linear layers are; "
            f"skip it with the rule {{{name!r}: None}}"
        )
    if inputs[0].is_meta:
        raise ValueError(f"layer {name!r} was given a tensor on the meta device; calibration needs numbers")
    return inputs[0]


@dataclasses.dataclass(frozen=True)
class Reading:
    """A tensor as a layer read it; it may be changed in place before the next layer reads it, or be gone."""

    x: weakref.ref[Tensor]  # refers to the tensor, but does not keep it
    version: int | None  # how often it had been changed, None if that is not counted
    mask: str  # what the batch calls the mask of its positions

    @classmethod
    def of(cls, name: str, inputs: tuple[Any, ...], batch: Any) -> Reading:
        """Note what a layer was called with, and which mask of the model's batch is its own."""
        x = tensor_read(name, inputs)
        return cls(weakref.ref(x), None if x.is_inference() else x._version, _mask_name(batch, name))

    def same_as(self, other: Reading) -> bool:
        """Whether two layers read the same numbers, as far as can be known."""
        known = self.version is not None and self.x() is not None
        return known and self.x() is other.x() and (self.version, self.mask) == (other.version, other.mask)


def _check(layers: Mapping[str, nn.Module], found: Mapping[str, InputMoments]) -> None:
    for name in layers:
        if name not in found:
            raise ValueError(f"calibration never reached layer {name!r}; skip it with the rule {{{name!r}: None}}")
        if not found[name].is_finite():
            raise ValueError(
                f"calibration gave layer {name!r} inputs that are NaN, infinite or too large to square; "
                "clean the batches"
            )
