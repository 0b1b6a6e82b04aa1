"""Which layers are converted, what each becomes, and why the others stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from milkweed.convert.costs import Costs, dense_costs, structured_costs
from milkweed.convert.passes.base import Draft, Pass
from milkweed.convert.rules import HEADS, ROUTERS, Rule, Rules, match_rules
from milkweed.convert.sites import LinearSite, has_ordinary_weight
from milkweed.nn.structured_linear import LayerConfig


@dataclasses.dataclass(frozen=True)
class Selection:
    """What becomes of the linear layers of a model."""

    choices: dict[str, LayerConfig]  # the configuration of each layer to convert, by name
    reasons: dict[str, str]  # why the others stay, by name
    named: frozenset[str] = frozenset()  # the layers to convert that a rule names exactly
    notes: tuple[str, ...] = ()  # what a user should know about it


def select(sites: Mapping[str, LinearSite], rules: Rules) -> Selection:
    """Apply rules to the linear layers of a model, whether or not the layers can have what the rules say."""
    matched = match_rules(rules, list(sites.values()))
    choices: dict[str, LayerConfig] = {}
    reasons: dict[str, str] = {}
    named = set()
    for name, site in sites.items():
        found = matched[name]
        if found is None:
            reasons[name] = "no rule matches it"
            continue
        choice, rule = found
        if choice is None:
            reasons[name] = _why_kept(rule)
        elif site.obstacle is not None and (rule in site.names or not has_ordinary_weight(site.module)):
            raise TypeError(f"layer {name!r} cannot be converted: {site.obstacle}; skip it with {{{name!r}: None}}")
        elif site.obstacle is not None:
            reasons[name] = site.obstacle
        else:
            choices[name] = choice
            named |= {name} if rule in site.names else set()
    _check_some(choices, reasons)
    return Selection(choices, reasons, frozenset(named))


def keep_useful(selection: Selection, sites: Mapping[str, LinearSite]) -> Selection:
    """Leave layers dense that are too small for their configuration, or that it would not make smaller.

    A layer that a rule names exactly is converted in any case. Where not one layer would become smaller, all are
    converted: the alternative would be to do nothing.
    """
    fits, unfit, useless = {}, {}, {}
    for name, config in selection.choices.items():
        try:
            costs = structured_costs(sites[name], config)
        except ValueError as error:
            message = f"layer {name!r} cannot become {config}: {error}"
            if name in selection.named:
                raise ValueError(f"{message}; or skip the layer with the rule {{{name!r}: None}}") from error
            unfit[name] = (f"it cannot become {config}: {error}", message)
            continue
        fits[name] = config
        dense = dense_costs(sites[name])
        if name not in selection.named and not costs.saves(dense):
            useless[name] = _why_useless(config, costs, dense)
    if not fits:
        raise ValueError(next(message for _, message in unfit.values()))
    notes = selection.notes
    if len(useless) == len(fits):
        notes += (f"no layer becomes smaller, so that all are converted as asked: {next(iter(useless.values()))}",)
        useless = {}
    return Selection(
        {name: config for name, config in fits.items() if name not in useless},
        selection.reasons | {name: reason for name, (reason, _) in unfit.items()} | useless,
        selection.named,
        notes,
    )


def _check_some(choices: Mapping[str, LayerConfig], reasons: Mapping[str, str]) -> None:
    if not choices:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        raise ValueError(f"nothing to convert among {len(reasons)} linear layers. {why}")


def _why_kept(rule: Rule) -> str:
    if rule == HEADS:
        return "it is a head"
    if rule == ROUTERS:
        return "it is a router, which chooses experts"
    return f"rule {rule!r} keeps it" if isinstance(rule, str) else "a rule keeps it"


def _why_useless(config: LayerConfig, costs: Costs, dense: Costs) -> str:
    more: dict[str, Any] = {"nblocks": "more blocks", "rank": "a lower rank"}
    fix = next((words for option, words in more.items() if getattr(config, option, None) is not None), "another one")
    return (
        f"{config} saves nothing, {costs.parameters:,} parameters against {dense.parameters:,} and {costs.flops:,} "
        f"FLOPs against {dense.flops:,}; take {fix}, or name the layer exactly"
    )


class Select(Pass):
    """Applies rules; ``useful`` leaves dense what would be no smaller or is too small, which a budget does itself."""

    def __init__(self, rules: Rules, *, useful: bool = True) -> None:
        self.rules, self.useful = rules, useful

    def run(self, draft: Draft) -> None:
        """Choose the layers."""
        found = select(draft.sites, self.rules)
        if self.useful:
            found = keep_useful(found, draft.sites)
        draft.choices, draft.reasons = found.choices, found.reasons
        draft.named, draft.notes = found.named, (*draft.notes, *found.notes)
