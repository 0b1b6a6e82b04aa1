"""Monarch updates of frozen models: added to their linear layers, merged into the weights, taken off again."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from milkweed._arguments import checked, is_kind
from milkweed.convert.record import structured_layers
from milkweed.convert.rules import HEADS, Rule, match_configs, matches, nothing_matched
from milkweed.convert.sites import (
    LinearSite,
    find_sites,
    is_conv1d,
    name_without_adapter,
    parameter_owners,
    reader_of_weight,
    replace,
    weight_obstacle,
    what_would_be_lost,
)
from milkweed.nn.structured_linear import AdaptedLinear, ConcatLinear, MonarchLinear, StructuredLinear
from milkweed.nn.wrappers import through_wrappers, without_wrappers


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """An update scale · M of a linear layer, M being a Monarch matrix that starts at zero.

    It has rank · nblocks · (in + out) parameters and any rank up to rank · nblocks². With ``nblocks=1`` it is LoRA: the
    update is scale · B A with A (rank, in) and B (out, rank), and scale stands for LoRA's alpha / r.

    Args:
        nblocks: Blocks per factor.
        rank: Rank of each slice. What MoRe calls the block rank is rank · nblocks, so the default is its 4.
        scale: Multiplies M.

    Raises:
        ValueError: A number is not a whole one from 1 on, or the scale is not finite.

    Source:
        MoRe (arXiv 2408.17383), which zero-initialises one factor and needs no scale; LoRA (arXiv 2106.09685).

    Example:
        >>> mw.AdapterConfig(nblocks=1, rank=8)  # one block: LoRA
        AdapterConfig(nblocks=1, rank=8, scale=1.0)
    """

    nblocks: int = 4
    rank: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("nblocks", "rank"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on; got {name}={value!r}")
        if not is_kind(self.scale, float) or not math.isfinite(self.scale):
            raise ValueError(f"scale must be a finite number; got scale={self.scale!r}")

    @checked
    def adapt(self, site: LinearSite) -> AdaptedLinear:
        """Put an update that starts at zero beside a layer; the model is not changed.

        Args:
            site: The layer, dense or structured.

        Returns:
            The adapted layer. The update is in float32, in float64 if the layer is. A packed query, key and value gets
            three updates, as a conversion gives it three matrices: one on the packed outputs would share its middle
            features among them.

        Raises:
            ValueError: The layer is too small for the rank or the number of blocks.
        """
        base = site.module
        first = next(itertools.chain(base.parameters(), base.buffers()), torch.empty(0))
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        options = (self.nblocks, False, self.rank, first.device, dtype, "zero")
        try:
            parts = [MonarchLinear(site.in_features, size, *options) for size in _part_sizes(site)]
            adapted = AdaptedLinear(base, parts[0] if len(parts) == 1 else ConcatLinear(parts), self.scale)
        except ValueError as error:
            fix = f"; skip it with the rule {{{site.name!r}: None}}"
            raise ValueError(f"layer {site.name!r} cannot have {self}: {error}{fix}") from error
        return adapted.train(base.training)


AdapterRules = Mapping[Rule, AdapterConfig | None] | Sequence[tuple[Rule, AdapterConfig | None]]


@through_wrappers(changes=True)
@checked(but=("rules", "train"))
def add_adapters_(
    model: nn.Module, rules: AdapterRules | AdapterConfig | None = None, *, train: str | Sequence[str] = ()
) -> list[str]:
    """Freeze a model and put trainable updates beside its linear layers, in place: its outputs stay as they are.

    A layer may be a ``torch.nn.Linear``, transformers' ``Conv1D``, a structured layer or, as its weight is not touched,
    a tied or quantised one. It becomes the ``base`` of a [`milkweed.nn.AdaptedLinear`][], so in a ``state_dict`` its
    name gains ``.base``.

    Args:
        model: Any module. After an error it is as before.
        rules: Ordered: exact module names, ``"re:"`` patterns for whole names, or functions of name and module, each to
            a configuration or to None for a layer without adapter; the first match wins. One configuration alone stands
            for every layer except the heads; by default ``AdapterConfig()``.
        train: What is not frozen, e.g. a new head: exact names or ``"re:"`` patterns of modules or parameters.
            `save_adapters` saves it with the adapters.

    Returns:
        The names of the layers that have an adapter now, all paths of each.

    Raises:
        ValueError: A rule or a name to train matches nothing, a layer has an adapter already, cannot have one, or is
            too small for it.
        TypeError: Rules or names are of another kind.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> mw.add_adapters_(model, {"0": mw.AdapterConfig(nblocks=4)}, train="2")
        ['0']
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.update.right', '0.update.left', '2.weight', '2.bias']
    """
    if isinstance(model, nn.Linear | StructuredLinear | ConcatLinear | AdaptedLinear) or is_conv1d(model):
        raise ValueError(
            f"model is itself a linear layer, a {type(model).__name__}, which cannot be replaced in place; put it into "
            "a torch.nn.Sequential"
        )
    if not isinstance(train, Sequence):
        raise TypeError(f"train must be a name, a 're:' pattern or a list of them; got {train!r}")
    if rules is None or isinstance(rules, AdapterConfig):
        rules = {HEADS: None, "re:.*": rules or AdapterConfig()}
    sites = adaptable_sites(model)
    chosen = _selected(sites, rules)
    placed = [(site.names, chosen[site.name].adapt(site)) for site in sites if site.name in chosen]
    attach(model, placed, _matching(model, [train] if isinstance(train, str) else train))
    return [name for names, _ in placed for name in names]


@through_wrappers(changes=True)
@checked
def remove_adapters_(model: nn.Module) -> list[str]:
    """Take all adapters off, in place; everything stays frozen as it is.

    Args:
        model: A model with adapters.

    Returns:
        The names of the layers that had one, all paths of each.

    Raises:
        ValueError: The model has no adapters.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> names = mw.add_adapters_(model, {"0": mw.AdapterConfig(nblocks=4)})
        >>> mw.remove_adapters_(model)
        ['0']
        >>> model[0]
        Linear(in_features=64, out_features=64, bias=True)
    """
    layers = adapted_layers(model)
    for adapted, names in layers.items():
        replace(model, names, adapted.base)
    return [name for names in layers.values() for name in names]


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
        found = [(name, p) for name, p in layer._parameters.items() if p is not None]
        return [cls(name, p, p._version, p.dtype, (p.device, p.data_ptr())) for name, p in found]

    def holds(self, layer: nn.Module) -> bool:
        """Ask whether a layer has this parameter unchanged; on another device it may lie elsewhere."""
        now = layer._parameters.get(self.name)
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
            adapted.to(_weight(merged).device)  # where the model has been moved
            replace(self.model, names, adapted.train(merged.training))


@through_wrappers(changes=True)
@checked
def merge_adapters_(model: nn.Module, *, keep: bool = False) -> MergedAdapters:
    """Add all updates to the weights, in place: plain dense layers of W + scale · M with the same outputs.

    The sum is taken in float32 at least and rounded once to the dtype of W. Every layer keeps its class, ``nn.Linear``
    or ``Conv1D``, and its bias, and stays frozen where it was.

    Args:
        model: A model with adapters. If a layer cannot be merged, none is.
        keep: Whether the result can be undone by ``unmerge_()``. The frozen weights then stay in memory beside the
            merged ones as long as the returned object lives; otherwise they are let go layer by layer.

    Returns:
        The names of the merged layers, and the way back.

    Raises:
        ValueError: The model has no adapters, or a layer cannot take its update: its weight is structured, quantised
            or tied, it has hooks, or the sum is not finite.

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


def adapted_layers(model: nn.Module) -> dict[AdaptedLinear, tuple[str, ...]]:
    """Find the layers with adapters, and all paths of each; a ValueError if there are none."""
    if isinstance(model, AdaptedLinear):
        raise ValueError("model is itself an AdaptedLinear; put it into a torch.nn.Sequential")
    found = _adapted_layers(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no adapters; add_adapters_(model) adds some")
    return found


def adaptable_sites(model: nn.Module) -> list[LinearSite]:
    """List every linear layer once, under its name without an adapter; obstacles say which cannot have one."""
    dense = [dataclasses.replace(s, obstacle=reader_of_weight(model, s.names)) for s in find_sites(model)]
    structured = [LinearSite(tuple(names), module, None) for module, names in structured_layers(model).items()]
    plain = [site for site in dense + structured if name_without_adapter(model, site.name) == site.name]
    taken = "it has an adapter already; skip it with a rule that stands for None, or remove_adapters_(model) first"
    return plain + [LinearSite(names, module, taken) for module, names in _adapted_layers(model).items()]


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name parameters as without adapters, tied ones under all names; those of the updates are left out."""
    adapted = {name for names in _adapted_layers(model).values() for name in names}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        inside = next((i for i in range(len(parts)) if ".".join(parts[:i]) in adapted), None)
        if inside is None:
            found[name] = parameter
        elif parts[inside] == "base":
            found[".".join(parts[:inside] + parts[inside + 1 :])] = parameter
    return found


def attach(
    model: nn.Module, placed: Sequence[tuple[tuple[str, ...], AdaptedLinear]], trained: Sequence[nn.Parameter]
) -> None:
    """Put adapted layers, each under all its paths, in their places and freeze everything but ``trained``."""
    model.requires_grad_(False)
    for names, adapted in placed:
        replace(model, names, adapted)
    for adapted in _adapted_layers(model):
        adapted.update.requires_grad_(True)
    for parameter in trained:
        parameter.requires_grad_(True)


def _part_sizes(site: LinearSite) -> list[int]:
    """Outputs of each matrix that stands side by side with others in a layer."""
    if isinstance(site.module, ConcatLinear):
        return [part.out_features for part in site.module.parts if isinstance(part, StructuredLinear)]
    return list(site.sizes) or [site.out_features]


def _adapted_layers(model: nn.Module) -> dict[AdaptedLinear, tuple[str, ...]]:
    found: dict[AdaptedLinear, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AdaptedLinear):
            found[module] = (*found.get(module, ()), name)
    return found


def _selected(sites: Sequence[LinearSite], rules: AdapterRules) -> dict[str, AdapterConfig]:
    matched = match_configs(rules, sites, AdapterConfig, "AdapterConfig(nblocks=4)")
    chosen: dict[str, AdapterConfig] = {}
    reasons: list[str] = []
    for site in sites:
        config, rule = matched[site.name] or (None, None)
        if config is None:
            continue
        if site.obstacle is None:
            chosen[site.name] = config
        elif isinstance(site.module, AdaptedLinear) or rule in site.names:
            raise ValueError(f"layer {site.name!r} cannot have an adapter: {site.obstacle}")
        else:
            reasons.append(f"{site.name}: {site.obstacle}")
    if not chosen:
        raise ValueError(f"no layer can have an adapter among {len(sites)} linear layers. {'; '.join(reasons[:5])}")
    return chosen


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    """The parameters that patterns name, by themselves or through a module that holds them."""
    parameters = base_parameters(model)
    paths = {name: list(itertools.accumulate(name.split("."), "{}.{}".format)) for name in parameters}
    found = []
    for pattern in patterns:
        try:
            hits = [name for name, known in paths.items() if any(matches(pattern, path, model) for path in known)]
        except (re.error, TypeError) as error:
            raise ValueError(
                f"train: {pattern!r} is neither a name nor a well-formed 're:' pattern: {error}"
            ) from error
        if not hits:
            known = {path for each in paths.values() for path in each}
            raise ValueError(f"train: {nothing_matched(pattern, known, 'modules and parameters')}")
        for name in hits:
            if not parameters[name].is_floating_point():
                raise ValueError(
                    f"train: {name!r} is {parameters[name].dtype}; only floating-point numbers are trained"
                )
        found += [parameters[name] for name in hits]
    return found


def _check_mergeable(model: nn.Module, layers: Mapping[AdaptedLinear, tuple[str, ...]]) -> None:
    owners = parameter_owners(model)
    for adapted, names in layers.items():
        base = adapted.base
        if isinstance(base, StructuredLinear | ConcatLinear):
            reason = f"W is a {type(base).__name__}, and W + M does not have its structure; densify_(model) first"
        elif found := weight_obstacle([f"{name}.base" for name in names], base, owners):
            reason = f"{found}; give it an ordinary weight of its own first"
        elif lost := next(filter(None, map(what_would_be_lost, (adapted, base, adapted.update))), None):
            reason = f"{lost} or see other numbers"
        elif not _weight(base).is_meta and not _merged_weight(adapted).isfinite().all():
            reason = f"W + scale · M has NaN or infinite numbers in {_weight(base).dtype}; check its update"
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
    merged = copy.copy(adapted.base)
    merged._parameters = dict(adapted.base._parameters)  # the copy shares everything but the weight
    merged.weight = nn.Parameter(_merged_weight(adapted), _weight(adapted.base).requires_grad)
    return merged


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight)
