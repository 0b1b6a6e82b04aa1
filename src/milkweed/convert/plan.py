"""Deciding what a conversion does to each linear layer of a model, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from milkweed._arguments import checked, plain, whole
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.experts import experts_apart
from milkweed.convert.layer_report import KeptMatrix
from milkweed.convert.passes.base import Draft, Pass, ProgressCallback
from milkweed.convert.passes.budget import WithinBudget
from milkweed.convert.passes.calibrate import Calibrate
from milkweed.convert.passes.measure import Measure
from milkweed.convert.passes.order import Order
from milkweed.convert.passes.project import Project, ProjectSequentially
from milkweed.convert.passes.report import report
from milkweed.convert.passes.select import Select
from milkweed.convert.passes.survey import survey
from milkweed.convert.rules import Rules, default_rules
from milkweed.convert.sites import digest, find_sites
from milkweed.nn.structured_linear import LayerConfig
from milkweed.nn.wrappers import is_sharded, through_wrappers


@dataclasses.dataclass(repr=False)
class ConversionPlan:
    """What becomes of every linear layer, ready to be carried out by `convert_`.

    Args:
        report: A line for each linear layer, converted or not.
        layers: The converted layers by name, until they are carried out; on the meta device where the model is.
        digests: Of the dense layers that they were made from: a plan does not outlive a training step.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        >>> plan = mw.plan_conversion(model, {"0": mw.MonarchConfig(nblocks=4)})
        >>> type(plan).__name__, list(plan.layers)
        ('ConversionPlan', ['0'])
    """

    report: ConversionReport
    layers: dict[str, nn.Module]
    digests: dict[str, tuple[object, ...]]

    def __repr__(self) -> str:
        return repr(self.report)


@through_wrappers(changes=False)
@checked(but=("rules", "calibration", "parameters"))
def plan_conversion(
    model: nn.Module,
    rules: Rules | LayerConfig | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    sequential: bool = False,
    permute: bool = False,
    parameters: float | None = None,
    candidates: Iterable[LayerConfig | None] = (),
    tokens: int | None = 1024,
    progress: ProgressCallback | None = None,
) -> ConversionPlan:
    """Project the linear layers of a model to structured ones and say what each costs; the model is not changed.

    Args:
        model: Any module, also within ``torch.compile`` or a parallel wrapper: names are those without it, and it is
            run as it is written. ``torch.nn.Linear`` and transformers' ``Conv1D`` are considered. A packed query, key
            and value becomes three matrices, a packed gate two. Experts that transformers keeps in one tensor are taken
            as layers ``experts.split.3.gate_linear``, ``up_linear`` and ``down_linear``.
        rules: Ordered: exact module names, ``"re:"`` patterns for whole names, or functions of name and module, each to
            a configuration or to None for a layer that stays; the first match wins. One configuration alone stands for
            `default_rules` with it: every layer except the heads. A layer that is too small for its configuration, or
            that would be no smaller with it, stays, unless it is named exactly.
        calibration: Batches that the model can be called with (mappings, tuples or tensors). Layers are then projected
            for the inputs that they get: outputs are kept rather than weights, and biases make up for the mean error.
        sequential: Project layer by layer on inputs from the layers converted so far. Best where there is no training
            afterwards; takes a forward pass over all batches for each group of layers.
        permute: Put the hidden units of feed-forward layers into the order in which their conversion loses least; needs
            calibration. The dense model in that order is the same one: layers that share units are known by their
            names, and tried on the first batch. Takes a copy of their weights.
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

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
        >>> batches = [torch.randn(64, 256) for _ in range(8)]
        >>> plan = mw.plan_conversion(model, {"0": mw.MonarchConfig(nblocks=4)}, calibration=batches)
        >>> report = mw.convert_(model, plan)  # until here the model was not changed
        >>> 0 < report.layers[0].output_error < 1
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if tokens is not None:
        whole("tokens", tokens, 0)
    if is_sharded(model):
        raise TypeError("the parameters of model are spread over processes; convert it before fully_shard")
    parameters = plain(parameters)
    batches = _batches(calibration, sequential=sequential, permute=permute, parameters=parameters)
    rules = default_rules(rules) if rules is None or isinstance(rules, LayerConfig) else rules
    passes: list[Pass] = []
    if batches is not None and (not sequential or permute or parameters is not None):
        passes.append(Calibrate())
    if parameters is not None:
        passes.append(WithinBudget(parameters, candidates))
    if permute:
        passes.append(Order())
    passes.append(ProjectSequentially() if sequential else Project())
    if tokens:
        passes.append(Measure(tokens))
    return run_passes(model, Select(rules, useful=parameters is None), passes, batches, progress)


def run_passes(
    model: nn.Module,
    select: Select,
    passes: Sequence[Pass],
    batches: Any = None,
    progress: ProgressCallback | None = None,
) -> ConversionPlan:
    """Plan with passes of one's own: select, check all, then run them in order; one of them must project."""
    with experts_apart(model):
        draft = Draft(model, {site.name: site for site in find_sites(model)}, batches=batches)
        if progress is not None:
            draft.progress = progress
        kept = survey(model, draft.sites.values())
        if not draft.sites:
            raise ValueError(f"the model has no linear layers{_largest(kept)}")
        select.run(draft)
        for each in passes:
            each.check(draft)
        for each in passes:
            each.run(draft)
        return ConversionPlan(
            report(draft, kept), draft.layers, {name: digest(draft.sites[name].module) for name in draft.layers}
        )


def _largest(kept: Sequence[KeptMatrix]) -> str:
    line = max(kept, key=lambda each: each.parameters, default=None)
    return "" if line is None else f"; its largest matrix is {line.name}: {line.reason}"


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
