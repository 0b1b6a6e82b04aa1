"""Deciding what a conversion does to each linear layer of a model, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from milkweed._arguments import checked, whole
from milkweed.convert.calibrate import Calibration
from milkweed.convert.candidates import Budget, count_parameters
from milkweed.convert.configs import LayerConfig
from milkweed.convert.layer_report import LayerReport
from milkweed.convert.permute import HiddenPair, check_pairs, hidden_orders, reordered, reordered_sites
from milkweed.convert.projection import project_site, weight_and_output_error
from milkweed.convert.report import ConversionReport
from milkweed.convert.rules import HEADS, Rules, default_rules, match_rules
from milkweed.convert.sequential import project_sequentially
from milkweed.convert.sites import LinearSite, digest, find_sites, has_ordinary_weight
from milkweed.convert.speed import measured_speedups
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear
from milkweed.nn.wrappers import is_sharded, through_wrappers

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(repr=False)
class ConversionPlan:
    """What becomes of every linear layer, ready to be carried out by `convert_`.

    Args:
        report: A line for each linear layer, converted or not.
        layers: The converted layers by name, until they are carried out; on the meta device where the model is.
        digests: Of the dense layers that they were made from: a plan does not outlive a training step.
    """

    report: ConversionReport
    layers: dict[str, nn.Module]
    digests: dict[str, tuple[object, ...]]

    def __repr__(self) -> str:
        return repr(self.report)


@through_wrappers(changes=False)
@checked
def plan_conversion(
    model: nn.Module,
    rules: Rules | LayerConfig | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    sequential: bool = False,
    permute: bool = False,
    parameters: float | None = None,
    candidates: Sequence[LayerConfig | None] = (),
    tokens: int | None = 1024,
    progress: Progress | None = None,
) -> ConversionPlan:
    """Project the linear layers of a model to structured ones and say what each costs; the model is not changed.

    Args:
        model: Any module, also within ``torch.compile`` or a parallel wrapper: names are those without it, and it is
            run as it is written. ``torch.nn.Linear`` and transformers' ``Conv1D`` are considered. A packed query, key
            and value becomes three matrices.
        rules: Ordered: exact module names, ``"re:"`` patterns for whole names, or functions of name and module, each to
            a configuration or to None for a layer that stays; the first match wins. One configuration alone stands for
            `default_rules` with it: every layer save the heads.
        calibration: Batches that the model can be called with (mappings, tuples or tensors). Layers are then projected
            for the inputs that they get: outputs are kept rather than weights, and biases make up for the mean error.
        sequential: Project layer by layer on inputs from the layers converted so far. Best where there is no training
            afterwards; takes a forward pass over all batches for each group of layers.
        permute: Put the hidden units of feed-forward layers into the order in which their conversion loses least; needs
            calibration. The dense model in that order is the same one: pairs of layers are known by their names, and
            tried on the first batch. Takes a copy of their weights.
        parameters: Budget: at most this many parameters in the layers that rules select, or this share of what they
            have now if at most 1. Each layer gets one of ``candidates`` by the error that it alone causes in the
            model's outputs, never a dearer one's for a lower budget; needs calibration.
        candidates: Configurations to choose from under a budget; None keeps a layer dense.
        tokens: Inputs at a time for which each kind of layer is timed against the dense one, to warn of slow swaps;
            None does not measure. Layers on the meta device are not timed.
        progress: Called with what is done, how many layers are done and how many there are.

    Returns:
        The plan, which prints as a table.

    Raises:
        TypeError: Rules or calibration are of a wrong kind, or a rule selects quantised or sparse weights.
        ValueError: A rule matches nothing, a layer cannot have its configuration, weights or inputs are not finite,
            calibration misses a layer, there are no hidden units to permute, or the budget cannot be met.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if tokens is not None:
        whole("tokens", tokens, 0)
    if is_sharded(model):
        raise TypeError("the parameters of model are spread over processes; convert it before fully_shard")
    rules = default_rules(rules) if rules is None or isinstance(rules, LayerConfig) else rules
    sites = {site.name: site for site in find_sites(model)}
    matched = match_rules(rules, list(sites.values()))
    choices, reasons = _selected(sites, matched)
    tell = progress or (lambda *_: None)
    batches = _batches(calibration, sequential=sequential, permute=permute, parameters=parameters)
    if permute:
        check_pairs(sites, choices)
    chosen_from = {name: sites[name] for name in choices}
    budget = None if parameters is None else Budget(chosen_from, parameters, candidates)
    moments = None
    if batches is not None and (not sequential or permute or budget is not None):
        moments = Calibration(model, {name: sites[name].module for name in choices}, batches)
    if budget is not None and moments is not None:
        chosen = budget.choose(model, moments, list(batches or ()), tell)
        reasons |= {name: "dense within the budget" for name, config in chosen.items() if config is None}
        choices = {name: config for name, config in chosen.items() if config is not None}
    orders = {}
    if permute and moments is not None:
        orders = hidden_orders(model, sites, choices, moments, list(batches or ()), tell)
    layers, errors = _project(model, sites, choices, orders, moments, list(batches or ()) if sequential else None, tell)
    speedups = measured_speedups(sites, layers, tokens) if tokens else {}
    report = ConversionReport(
        tuple(
            _line(site, choices.get(name), layers.get(name), errors.get(name), reasons.get(name), speedups.get(name))
            for name, site in sites.items()
        ),
        sum(p.numel() for p in model.parameters()),
        tuple(pair.names for pair in orders),
    )
    return ConversionPlan(report, layers, {name: digest(sites[name].module) for name in layers})


def _selected(
    sites: Mapping[str, LinearSite], matched: Mapping[str, Any]
) -> tuple[dict[str, LayerConfig], dict[str, str]]:
    choices: dict[str, LayerConfig] = {}
    reasons: dict[str, str] = {}
    for name, site in sites.items():
        if matched[name] is None:
            reasons[name] = "no rule matches it"
            continue
        choice, rule = matched[name]
        if choice is None:
            reasons[name] = _why_kept(rule)
        elif site.obstacle is not None and (rule in site.names or not has_ordinary_weight(site.module)):
            raise TypeError(f"layer {name!r} cannot be converted: {site.obstacle}; skip it with {{{name!r}: None}}")
        elif site.obstacle is not None:
            reasons[name] = site.obstacle
        else:
            choices[name] = choice
    if not choices:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        raise ValueError(f"nothing to convert among {len(sites)} linear layers. {why}")
    return choices, reasons


def _why_kept(rule: Any) -> str:
    if rule == HEADS:
        return "it is a head"
    return f"rule {rule!r} keeps it" if isinstance(rule, str) else "a rule keeps it"


def _batches(calibration: Iterable[Any] | None, **options: object) -> Iterable[Any] | None:
    """The calibration batches, a list where an option runs through them more than once."""
    if isinstance(calibration, Tensor | Mapping | str) or not isinstance(calibration, Iterable | None):
        raise TypeError(f"calibration must be an iterable of batches, e.g. a list; got a {type(calibration).__name__}")
    asked = [f"{name}={value!r}" for name, value in options.items() if value is not None and value is not False]
    if not asked or (isinstance(calibration, list) and calibration):
        return calibration
    batches = list(calibration or ())
    if not batches:
        raise ValueError(f"{asked[0]} needs calibration: batches that the model can be called with")
    return batches


def _project(
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    choices: Mapping[str, LayerConfig],
    orders: Mapping[HiddenPair, Tensor],
    moments: Calibration | None,
    batches: Sequence[Any] | None,
    tell: Progress,
) -> tuple[dict[str, nn.Module], dict[str, tuple[float | None, float | None]]]:
    """The converted layers, and their relative errors in weights and in outputs."""
    layers: dict[str, nn.Module] = {}
    errors: dict[str, tuple[float | None, float | None]] = {}
    if batches is not None:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tell("projecting", done, len(choices))

        with reordered(model, sites, orders) as there:
            layers, output_errors = project_sequentially(model, choices, there, batches, advance)
        return layers, {
            name: (weight_and_output_error(there[name], layer, None)[0], output_errors[name])
            for name, layer in layers.items()
        }
    there = {**sites, **reordered_sites(sites, orders)}
    columns = {pair.reader: order for pair, order in orders.items()}
    for done, (name, config) in enumerate(choices.items(), 1):
        layers[name], errors[name] = _project_one(there[name], config, moments, columns.get(name))
        tell("projecting", done, len(choices))
    return layers, errors


def _project_one(
    site: LinearSite, config: LayerConfig, moments: Calibration | None, columns: Tensor | None
) -> tuple[nn.Module, tuple[float | None, float | None]]:
    # A function of its own, so that one layer's moments are let go before the next one's are gathered.
    read = None if moments is None else moments[site.name]
    if read is not None and columns is not None:
        read = read.reordered(columns)
    layer = project_site(site, config, read)
    return layer, weight_and_output_error(site, layer, read)


def _line(
    site: LinearSite,
    config: LayerConfig | None,
    layer: nn.Module | None,
    errors: tuple[float | None, float | None] | None,
    reason: str | None,
    speedup: float | None,
) -> LayerReport:
    relative, output = errors or (None, None)
    dense = count_parameters(site.module)
    parts = list(layer.parts) if isinstance(layer, ConcatLinear) else [layer]
    flops = sum(part.matrix().flops(1) for part in parts if isinstance(part, StructuredLinear))
    return LayerReport(
        names=site.names,
        in_features=site.in_features,
        out_features=site.out_features,
        layer=None if config is None or layer is None else config.spec(),
        parts=site.parts,
        parameters_before=dense,
        parameters_after=dense if layer is None else count_parameters(layer),
        flops_before=2 * site.in_features * site.out_features,
        flops_after=2 * site.in_features * site.out_features if layer is None else flops,
        relative_error=relative,
        output_error=output,
        speedup=speedup,
        reason=reason if layer is None else None,
    )
