"""Deciding what a conversion does to each linear layer of a model, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.budget import choose_within
from milkweed.convert.calibrate import input_moments, model_outputs
from milkweed.convert.configs import LayerConfig
from milkweed.convert.report import ConversionReport, LayerReport
from milkweed.convert.rules import HEADS, Rules, default_rules, match_rules
from milkweed.convert.sequential import project_sequentially
from milkweed.convert.sites import LinearSite, find_sites, has_ordinary_weight, replace
from milkweed.convert.speed import measured_speedups
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear

Progress = Callable[[str, int, int], None]

# Under a budget the model is run once for every layer and candidate: on few batches.
_BATCHES_TO_COMPARE = 4


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
            for the inputs that they get: outputs are kept rather than weights.
        sequential: Project layer by layer on inputs from the layers converted so far. Best where there is no training
            afterwards; takes a forward pass over all batches for each group of layers, and a copy of the model.
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
    seen: Iterable[Any] | None = calibration if batches is None else batches
    covariances: dict[str, Tensor] = {}
    if seen is not None and (not sequential or parameters is not None):
        covariances = _covariances(model, sites, choices, seen)
    if parameters is not None:
        choices, kept = _within_budget(model, sites, choices, covariances, batches, parameters, candidates, tell)
        reasons |= kept
    layers, errors = _project(model, sites, choices, covariances, batches if sequential else None, tell)
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


def _covariances(
    model: nn.Module, sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig], batches: Iterable[Any]
) -> dict[str, Tensor]:
    moments = input_moments(model, {name: sites[name].module for name in choices}, batches)
    return {name: found.covariance for name, found in moments.items()}


def _project(
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    choices: Mapping[str, LayerConfig],
    covariances: Mapping[str, Tensor],
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
        layers[name] = project_site(sites[name], config, covariances.get(name))
        errors[name] = weight_and_output_error(sites[name], layers[name], covariances.get(name))
        tell("projecting", done, len(choices))
    return layers, errors


def project_site(site: LinearSite, config: LayerConfig, covariance: Tensor | None) -> nn.Module:
    """Convert one layer.

    Args:
        site: The layer.
        config: What it becomes.
        covariance: E[x xᵀ] of its inputs.

    Returns:
        The converted layer; on the meta device, without numbers, if the dense one is.

    Raises:
        ValueError: The layer cannot have this configuration, or its weight is not finite.
    """
    try:
        parts: list[StructuredLinear] = [
            config.empty(linear) if linear.weight.is_meta else config.project(linear, covariance)
            for linear in site.linears()
        ]
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"layer {site.name!r} cannot become {config}: {error}") from error
    return parts[0] if len(parts) == 1 else ConcatLinear(parts).train(site.module.training)


@torch.no_grad()
def weight_and_output_error(
    site: LinearSite, layer: nn.Module, covariance: Tensor | None
) -> tuple[float | None, float | None]:
    """Measure how far a converted layer is from the dense one.

    Args:
        site: The dense layer.
        layer: The converted one.
        covariance: E[x xᵀ] of the inputs.

    Returns:
        ‖W − M‖ / ‖W‖, and √(E‖(W − M) x‖² / E‖W x‖²) where there is a covariance; None on the meta device.
    """
    lost = whole = lost_output = whole_output = 0.0
    parts = layer.parts if isinstance(layer, ConcatLinear) else [layer]
    for linear, part in zip(site.linears(), parts, strict=True):
        assert isinstance(part, StructuredLinear)
        if linear.weight.is_meta:
            return None, None
        wide = torch.promote_types(linear.weight.dtype, torch.float32)
        weight = linear.weight.to(wide)
        difference = weight - part.matrix().to(dtype=wide).to_dense()
        lost += float(difference.norm().double() ** 2)
        whole += float(weight.norm().double() ** 2)
        if covariance is not None:
            energies = [float(((w @ covariance.to(wide)) * w).sum(dtype=torch.float64)) for w in (difference, weight)]
            lost_output += max(energies[0], 0.0)
            whole_output += energies[1]
    relative = (lost / whole) ** 0.5 if whole > 0 else 0.0
    if covariance is None:
        return relative, None
    return relative, (lost_output / whole_output) ** 0.5 if whole_output > 0 else 0.0


def _within_budget(
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    choices: Mapping[str, LayerConfig],
    covariances: Mapping[str, Tensor],
    batches: Sequence[Any] | None,
    parameters: float,
    candidates: Sequence[LayerConfig | None],
    tell: Progress,
) -> tuple[dict[str, LayerConfig], dict[str, str]]:
    """The candidate of each layer under the budget, and the reasons of those that stay dense."""
    if not batches:
        raise ValueError("parameters, a budget, needs calibration: candidates are compared by what they cost the model")
    if not any(candidates):
        raise ValueError(
            "parameters, a budget, needs candidates to choose from, e.g. "
            "candidates=[None, MonarchConfig(2), MonarchConfig(4), MonarchConfig(8)]"
        )
    looked_at = batches[:: -(-len(batches) // _BATCHES_TO_COMPARE)]
    dense = model_outputs(model, looked_at)
    options: dict[str, list[tuple[int, float, LayerConfig | None]]] = {}
    for done, name in enumerate(choices, 1):
        options[name] = []
        for config in candidates:
            layer = None if config is None else _candidate(sites[name], config, covariances[name])
            if layer is not None:
                changed = _outputs_with(model, sites[name], layer, looked_at)
                options[name].append((_count(layer), float((changed - dense).square().mean()), config))
            elif config is None:
                options[name].append((_count(sites[name].module), 0.0, None))
        tell("comparing candidates", done, len(choices))
    before = sum(_count(sites[name].module) for name in choices)
    chosen = choose_within(options, round(parameters * before) if parameters <= 1 else int(parameters))
    kept = {name: "dense within the budget" for name, config in chosen.items() if config is None}
    return {name: config for name, config in chosen.items() if config is not None}, kept


def _candidate(site: LinearSite, config: LayerConfig, covariance: Tensor) -> nn.Module | None:
    """The converted layer, or None if the configuration does not fit its sizes."""
    try:
        return project_site(site, config, covariance)
    except ValueError:
        return None


def _outputs_with(model: nn.Module, site: LinearSite, layer: nn.Module, batches: Sequence[Any]) -> Tensor:
    """What the model gives with one layer converted; the dense layer is put back."""
    replace(model, site.names, layer)
    try:
        return model_outputs(model, batches)
    finally:
        replace(model, site.names, site.module)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _line(
    site: LinearSite,
    config: LayerConfig | None,
    layer: nn.Module | None,
    errors: tuple[float | None, float | None] | None,
    reason: str | None,
    speedup: float | None,
) -> LayerReport:
    relative, output = errors or (None, None)
    dense = _count(site.module)
    parts = list(layer.parts) if isinstance(layer, ConcatLinear) else [layer]
    flops = sum(part.matrix().flops(1) for part in parts if isinstance(part, StructuredLinear))
    return LayerReport(
        names=site.names,
        in_features=site.in_features,
        out_features=site.out_features,
        layer=None if config is None or layer is None else config.spec(),
        parts=site.parts,
        parameters_before=dense,
        parameters_after=dense if layer is None else _count(layer),
        flops_before=2 * site.in_features * site.out_features,
        flops_after=2 * site.in_features * site.out_features if layer is None else flops,
        relative_error=relative,
        output_error=output,
        speedup=speedup,
        reason=reason if layer is None else None,
    )
