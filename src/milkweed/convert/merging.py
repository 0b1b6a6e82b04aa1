"""Updates merged into the weights that they stand beside, dense or structured, and taken out again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed.convert.adapters import adapted_layers
from milkweed.convert.sites import is_conv1d, parameter_owners, replace, weight_obstacle, what_would_be_lost
from milkweed.nn.structured_linear import AdaptedLinear, ConcatLinear, LowRankLinear, MonarchLinear, StructuredLinear
from milkweed.nn.wrappers import through_wrappers, without_wrappers
from milkweed.structures import LowRank, Monarch
from milkweed.structures.monarch_sum import matrix_rows


@dataclasses.dataclass(frozen=True)
class _State:
    """A parameter as it was: the object, its version counter, its dtype and where its numbers lie."""

    name: str
    parameter: nn.Parameter
    version: int
    dtype: torch.dtype
    place: tuple[torch.device, int]

    @classmethod
    def all_of(cls, layer: nn.Module) -> list[_State]:
        """Note the parameters of a layer."""
        found = list(layer.named_parameters())
        return [cls(name, p, p._version, p.dtype, (p.device, p.data_ptr())) for name, p in found]

    def holds(self, layer: nn.Module) -> bool:
        """Ask whether a layer has this parameter unchanged; on another device it may lie elsewhere."""
        now = dict(layer.named_parameters()).get(self.name)
        if now is not self.parameter or (now._version, now.dtype) != (self.version, self.dtype):
            return False
        return now.device != self.place[0] or now.data_ptr() == self.place[1]


@dataclasses.dataclass(repr=False)
class MergedAdapters:
    """What `merge_adapters_` did. With ``keep=True`` it holds the adapters and the frozen weights, and can go back.

    Args:
        model: The model.
        names: The merged layers, all paths of each.
        kept: All paths, the adapted layer, the merged one and the state of its weight and bias.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(3, 64)
        >>> before, names = model(x), mw.add_adapters_(model, {"0": mw.AdapterConfig(nblocks=4)})
        >>> merged = mw.merge_adapters_(model, keep=True)
        >>> torch.allclose(model(x), before, atol=1e-5), type(merged).__name__
        (True, 'MergedAdapters')
    """

    model: nn.Module
    names: list[str]
    kept: list[tuple[tuple[str, ...], AdaptedLinear, nn.Module, list[_State]]]

    def __repr__(self) -> str:
        back = "unmerge_() goes back" if self.kept else "nothing is kept to go back to"
        return f"MergedAdapters({len(self.names)} layers of {type(self.model).__name__}; {back})"

    def unmerge_(self) -> None:
        """Put the adapted layers back, the very ones: their frozen weights are those from before, bit for bit.

        Raises:
            ValueError: Nothing was kept, or merged layers have been replaced, trained or cast since.
        """
        if not self.kept:
            raise ValueError("there is nothing to go back to; merge with merge_adapters_(model, keep=True)")
        with without_wrappers(self.model, "unmerge_"):
            self._unmerge()
        self.kept = []

    def _unmerge(self) -> None:
        for names, _, merged, states in self.kept:
            current = [self.model.get_submodule(name) for name in names]
            if any(module is not merged for module in current):
                raise ValueError(f"layer {names[0]!r} was replaced after merging")
            for state in states:
                if not state.holds(merged):
                    raise ValueError(f"layer {names[0]!r} cannot be unmerged: its {state.name} changed after merging")
        for names, adapted, merged, _ in self.kept:
            adapted.to(next(merged.parameters()).device)  # where the model has been moved
            replace(self.model, names, adapted.train(merged.training))


@through_wrappers(changes=True)
@checked
def merge_adapters_(model: nn.Module, *, keep: bool = False) -> MergedAdapters:
    """Add all updates to the weights, in place: plain layers of W + scale · M with the same outputs.

    The sum is taken in float32 at least and rounded once to the dtype of W. Every layer keeps its class, ``nn.Linear``
    or ``Conv1D``, and its bias, and stays frozen where it was. So does a structured layer whose rank can grow: the sum
    is exact, and the layer larger (`milkweed.nn.StructuredLinear.add_`).

    Args:
        model: A model with adapters. If a layer cannot be merged, none is.
        keep: Whether the result can be undone by ``unmerge_()``. The frozen weights then stay in memory beside the
            merged ones as long as the returned object lives; otherwise they are let go layer by layer.

    Returns:
        The names of the merged layers, and the way back.

    Raises:
        ValueError: The model has no adapters, or a layer cannot take its update: its weight is quantised or tied or of
            a structure without rank, it has hooks, or the sum is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> names = mw.add_adapters_(model, {"0": mw.AdapterConfig(nblocks=4)})
        >>> merged = mw.merge_adapters_(model)
        >>> model
        Sequential(
          (0): Linear(in_features=64, out_features=64, bias=True)
        )
    """
    layers = adapted_layers(model)
    _check_mergeable(model, layers)
    names = [name for paths in layers.values() for name in paths]
    kept = []
    while layers:
        adapted = next(iter(layers))
        paths = layers.pop(adapted)
        merged = _merged(adapted)
        replace(model, paths, merged)
        if keep:
            kept.append((paths, adapted, merged, _State.all_of(merged)))
    return MergedAdapters(model, names, kept)


def _check_mergeable(model: nn.Module, layers: Mapping[AdaptedLinear, tuple[str, ...]]) -> None:
    owners = parameter_owners(model)
    for adapted, names in layers.items():
        base = adapted.base
        places = [f"{name}.base" for name in names]
        structured = isinstance(base, StructuredLinear | ConcatLinear)
        if structured and (found := _structure_obstacle(adapted)):
            reason = f"{found}; densify_(model) first"
        elif found := _tied(base, places, owners) if structured else weight_obstacle(places, base, owners):
            reason = f"{found}; give it an ordinary weight of its own first"
        elif lost := next(filter(None, map(what_would_be_lost, (adapted, base, adapted.update))), None):
            reason = f"{lost} or see other numbers"
        elif not is_finite(_merged(adapted)):
            reason = f"W + scale · M has NaN or infinite numbers in {next(base.parameters()).dtype}; check its update"
        else:
            continue
        raise ValueError(f"layer {names[0]!r} cannot be merged: {reason}, or leave the adapters unmerged")


@torch.no_grad()
def _merged_weight(adapted: AdaptedLinear) -> Tensor:
    base, weight = adapted.base, _weight(adapted.base)
    update = adapted.scale * adapted.update.to_linear().weight.to(weight.device)
    wide = torch.promote_types(torch.promote_types(weight.dtype, update.dtype), torch.float32)
    total = weight.to(wide) + (update.T if is_conv1d(base) else update).to(wide)
    return total.to(weight.dtype).contiguous()


def _merged(adapted: AdaptedLinear) -> nn.Module:
    merged = own_copy(adapted.base)
    if not isinstance(merged, StructuredLinear | ConcatLinear):
        merged.weight = nn.Parameter(_merged_weight(adapted), _weight(adapted.base).requires_grad)
        return merged
    for layer, matrix in _terms(adapted.update, merged):
        layer.add_(scaled(matrix, adapted.scale))
    return merged


def _structure_obstacle(adapted: AdaptedLinear) -> str | None:
    """Why the sum of a structured weight and its update has no structure of its own, or None."""
    base, update = adapted.base, adapted.update
    if not cast(StructuredLinear, base).takes_updates:
        return f"W is a {type(base).__name__}, and W + M does not have its structure"
    parts = update.parts if isinstance(update, ConcatLinear) else [update]
    if other := next((part for part in parts if not isinstance(part, MonarchLinear | LowRankLinear)), None):
        return f"W is a {type(base).__name__}, and M a {type(other).__name__}, whose sum has no structure of its own"
    return None


def _tied(base: nn.Module, places: Sequence[str], owners: Mapping[int, set[str]]) -> str | None:
    """Which other layer a structured one shares its factors with, or None."""
    inside = {f"{place}.{name}".rstrip(".") for place in places for name, _ in base.named_modules()}
    others = {owner for parameter in base.parameters() for owner in owners[id(parameter)]} - inside
    return f"its factors are tied to {min(others)}" if others else None


def is_finite(layer: nn.Module) -> bool:
    """Whether the weight has finite numbers only, or none on the meta device; biases are as they were."""
    weights = [p for name, p in layer.named_parameters() if name.rpartition(".")[2] != "bias"]
    return all(bool(weight.is_meta) or bool(weight.isfinite().all()) for weight in weights)


Grown = StructuredLinear | ConcatLinear


def _terms(update: Grown, base: Grown) -> Iterator[tuple[Grown, Monarch | LowRank]]:
    """The matrices of an update and the layer, or the part of a packed layer, that each is to be added to."""
    if not isinstance(update, ConcatLinear):
        yield base, cast(Monarch | LowRank, update.matrix())
        return
    parts = [cast(StructuredLinear, part) for part in update.parts]
    if isinstance(base, ConcatLinear) and [p.out_features for p in base.parts] == [p.out_features for p in parts]:
        for part, layer in zip(parts, base.parts, strict=True):
            yield from _terms(part, cast(StructuredLinear, layer))
        return
    first = 0
    for part in parts:
        (matrix,) = (matrix for _, matrix in _terms(part, base))
        yield base, matrix_rows(matrix, -first, base.out_features - first)
        first += part.out_features


def scaled(matrix: Monarch | LowRank, scale: float) -> Monarch | LowRank:
    """Multiply a matrix by a number."""
    return dataclasses.replace(matrix, left=scale * matrix.left)


def own_copy(layer: nn.Module) -> nn.Module:
    """Copy a layer, but not its numbers: another parameter in one of the two is not in the other."""
    new = copy.copy(layer)
    new._parameters, new._buffers = dict(layer._parameters), dict(layer._buffers)
    new._modules = {name: None if child is None else own_copy(child) for name, child in layer._modules.items()}
    return new


def become_(layer: nn.Module, other: nn.Module) -> None:
    """Give a structured layer the parameters and the rank of a copy of it, where it is and in its dtype."""
    for module, source in zip(layer.modules(), other.modules(), strict=True):
        for name, parameter in source._parameters.items():
            old = module._parameters[name]
            if parameter is not None and old is not None:
                parameter.data = parameter.data.to(old)
            module._parameters[name] = parameter
        if isinstance(module, StructuredLinear) and hasattr(source, "rank"):
            cast(MonarchLinear, module).rank = cast(MonarchLinear, source).rank


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight)
