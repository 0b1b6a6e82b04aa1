"""Monarch updates of frozen models: added to their linear layers and taken off again."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from milkweed._arguments import checked, is_kind
from milkweed.convert.record import structured_layers
from milkweed.convert.rules import HEADS, Rule, match_configs, matches, nothing_matched
from milkweed.convert.sites import (
    LinearSite,
    find_sites,
    is_conv1d,
    name_without_adapter,
    reader_of_weight,
    replace,
)
from milkweed.nn.structured_linear import AdaptedLinear, ConcatLinear, MonarchLinear, StructuredLinear
from milkweed.nn.wrappers import through_wrappers


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
