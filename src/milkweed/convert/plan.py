"""Deciding what a conversion does to each linear layer of a model, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from milkweed.convert.calibrate import Calibration
from milkweed.convert.candidates import Budget, count_parameters
from milkweed.convert.configs import LayerConfig
from milkweed.convert.projection import project_site, weight_and_output_error
from milkweed.convert.report import ConversionReport, LayerReport
from milkweed.convert.rules import HEADS, Rules, default_rules, match_rules
from milkweed.convert.sequential import project_sequentially
from milkweed.convert.sites import LinearSite, find_sites, has_ordinary_weight
from milkweed.convert.speed import measured_speedups
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass
class ConversionPlan:
    """What becomes of every linear layer, ready to be carried out by `convert_`.

    Args:
        report: A line for each linear layer, converted or not.
        layers: The converted layers by name; on the meta device where the model is.
        weights: The dense weights that they were made from, with their version counters: a plan does not outlive a
            training step.
    """

    report: ConversionReport
    layers: dict[str, nn.Module]
    weights: dict[str, tuple[Tensor, int]]

    def __str__(self) -> str:
        return str(self.report)


def plan_conversion(
    model: nn.Module,
    rules: Rules | LayerConfig | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    sequential: bool = False,
    parameters: float | None = None,
    candidates: Sequence[LayerConfig | None] = (),
    tokens: int | None = 1024,
    progress: Progress | None = None,
) -> ConversionPlan:
    """Project the linear layers of a model to structured ones and say what each costs; the model is not changed.

    Args:
        model: Any module; ``torch.nn.Linear`` and transformers' ``Conv1D`` are considered. A packed query, key and
            value becomes three matrices.
        rules: Ordered: exact module names, ``"re:"`` patterns for whole names, or functions of name and module, each to
            a configuration or to None for a layer that stays; the first match wins. One configuration alone stands for
            `default_rules` with it: every layer save the heads.
        calibration: Batches that the model can be called with (mappings, tuples or tensors). Layers are then projected
            for the inputs that they get: outputs are kept rather than weights, and biases make up for the mean error.
        sequential: Project layer by layer on inputs from the layers converted so far. Best where there is no training
            afterwards; takes a forward pass over all batches for each group of layers.
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
            calibration misses a layer, or the budget cannot be met.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    rules = default_rules(rules) if rules is None or isinstance(rules, LayerConfig) else rules
    sites = {site.name: site for site in find_sites(model)}
    matched = match_rules(rules, list(sites.values()))
    choices, reasons = _selected(sites, matched)
    tell = progress or (lambda *_: None)
    batches = _as_list(calibration) if sequential or parameters is not None else None
    if sequential and not batches:
        raise ValueError("sequential=True needs calibration: batches that the model can be called with")
    if parameters is not None and not batches:
        raise ValueError("parameters, a budget, needs calibration: candidates are compared by what they cost the model")
    chosen_from = {name: sites[name] for name in choices}
    budget = None if parameters is None else Budget(chosen_from, parameters, candidates)
    seen: Iterable[Any] | None = calibration if batches is None else batches
    moments = None
    if seen is not None and (not sequential or budget is not None):
        moments = Calibration(model, {name: sites[name].module for name in choices}, seen)
    if budget is not None and moments is not None:
        chosen = budget.choose(model, moments, batches or [], tell)
        reasons |= {name: "dense within the budget" for name, config in chosen.items() if config is None}
        choices = {name: config for name, config in chosen.items() if config is not None}
    layers, errors = _project(model, sites, choices, moments, batches if sequential else None, tell)
    speedups = measured_speedups(sites, layers, tokens) if tokens else {}
    report = ConversionReport(
        tuple(
            _line(site, choices.get(name), layers.get(name), errors.get(name), reasons.get(name), speedups.get(name))
            for name, site in sites.items()
        ),
        sum(p.numel() for p in model.parameters()),
    )
    weights = {name: (sites[name].weight, sites[name].weight._version) for name in layers}
    return ConversionPlan(report, layers, weights)


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


def _as_list(calibration: Iterable[Any] | None) -> list[Any] | None:
    if calibration is None or isinstance(calibration, list):
        return calibration
    if isinstance(calibration, Tensor | Mapping | str):
        raise TypeError(f"calibration must be an iterable of batches, e.g. a list; got a {type(calibration).__name__}")
    return list(calibration)


def _project(
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    choices: Mapping[str, LayerConfig],
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

        layers, output_errors = project_sequentially(model, choices, sites, batches, advance)
        return layers, {
            name: (weight_and_output_error(sites[name], layer, None)[0], output_errors[name])
            for name, layer in layers.items()
        }
    for done, (name, config) in enumerate(choices.items(), 1):
        read = None if moments is None else moments[name]
        layers[name] = project_site(sites[name], config, read)
        errors[name] = weight_and_output_error(sites[name], layers[name], read)
        tell("projecting", done, len(choices))
    return layers, errors


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
