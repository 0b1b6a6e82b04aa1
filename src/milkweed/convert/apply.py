"""Carrying a plan out on a model, and going back to dense layers."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import nn

from milkweed._arguments import checked
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.experts import experts_apart, fuse_, split_recorded_
from milkweed.convert.hub.attach import attach
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.record import structured_layers
from milkweed.convert.rules import Rules
from milkweed.convert.sites import (
    LinearSite,
    digest,
    find_sites,
    is_conv1d,
    name_without_adapter,
    parameter_owners,
    replace,
    what_would_be_lost,
)
from milkweed.convert.skeleton import skeleton_of
from milkweed.nn.structured_linear import ConcatLinear, LayerConfig, StructuredLinear
from milkweed.nn.wrappers import through_wrappers


@through_wrappers(changes=True)
@checked(but=("plan",))
def convert_(model: nn.Module, plan: ConversionPlan | Rules | LayerConfig | None = None) -> ConversionReport:
    """Replace linear layers by the structured ones of a plan, in place: all of them or, after an error, none.

    Args:
        model: The model that was planned for, or a copy of it.
        plan: From `plan_conversion`, or rules or one configuration, for which a plan without calibration is made.

    Returns:
        What was done.

    Raises:
        ValueError: The plan was made for another model or has been carried out, or layers have changed since.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
        >>> report = mw.convert_(model, {"re:.*": mw.MonarchConfig(nblocks=4)})
        >>> type(model[0]).__name__, report.layers[0].parameters_before, report.layers[0].parameters_after
        ('MonarchLinear', 263168, 82944)
    """
    if not isinstance(plan, ConversionPlan):
        plan = plan_conversion(model, plan, tokens=None)
    with experts_apart(model):
        sites = {site.name: site for site in find_sites(model)}
        _check(plan, sites)
    split_recorded_(model, plan.layers)
    for line in plan.report.converted:
        site = sites[line.name]
        layer = plan.layers.pop(line.name).train(site.module.training)
        replace(model, line.names, layer.to(site.weight.device))
    attach(model)
    return plan.report


def _check(plan: ConversionPlan, sites: Mapping[str, LinearSite]) -> None:
    """Refuse a plan that was made for other layers, or has been carried out."""
    for name, noted in plan.digests.items():
        if name not in sites:
            raise ValueError(f"the plan was made for another model: there is no linear layer {name!r}")
        if sites[name].obstacle is not None:
            raise ValueError(f"layer {name!r} can no longer be converted: {sites[name].obstacle}; plan again")
        if digest(sites[name].module) != noted:
            raise ValueError(
                f"layer {name!r} is not what the plan was made for: its weight or bias, their dtype, or whether they "
                "are trained has changed; plan again"
            )
    if plan.digests and not plan.layers:
        raise ValueError("this plan has been carried out, and its layers belong to that model; plan again")


@torch.no_grad()
@through_wrappers(changes=True)
@checked
def densify_(model: nn.Module) -> list[str]:
    """Multiply the factors of all structured linear layers out, in place: the same outputs from dense layers.

    Where transformers knows the model, packed layers become ``Conv1D`` again if its architecture has them, and experts
    that were split are fused again. Under an adapter the base becomes dense, and the adapter stays as it is.

    Args:
        model: Any module.

    Returns:
        The names of the layers that were made dense, all paths of each.

    Raises:
        ValueError: The model has no structured layer, or is itself one, or a layer has hooks or shares its factors.

    Example:
        >>> model, x = nn.Sequential(mw.nn.MonarchLinear(64, 64, nblocks=4)), torch.randn(3, 64)
        >>> before = model(x)
        >>> mw.densify_(model)
        ['0']
        >>> model[0], torch.allclose(model(x), before, atol=1e-5)
        (Linear(in_features=64, out_features=64, bias=True), True)
    """
    if isinstance(model, StructuredLinear | ConcatLinear):
        raise ValueError("model is itself a structured layer; use model.to_linear()")
    found = structured_layers(model)
    if not found:
        raise ValueError("model has no structured linear layer; it is dense already")
    owners = parameter_owners(model)
    for module, names in found.items():
        lost = what_would_be_lost(module)
        if any(not owners[id(p)] <= _inside(module, names) for p in module.parameters()):
            lost = "its factors are shared with another layer"
        if lost is not None:
            raise ValueError(f"layer {names[0]!r} cannot be made dense: {lost}")
    skeleton = skeleton_of(model)
    if skeleton is not None:
        split_recorded_(skeleton, (name for names in found.values() for name in names))
    dense: list[tuple[tuple[str, ...], nn.Module]] = []
    for module, names in found.items():
        assert isinstance(module, StructuredLinear | ConcatLinear)
        linear = module.to_linear()
        transposed = skeleton is not None and is_conv1d(skeleton.get_submodule(name_without_adapter(model, names[0])))
        dense.append((tuple(names), _as_conv1d(linear) if transposed else linear))
    for paths, replacement in dense:
        replace(model, paths, replacement)
    fuse_(model)
    attach(model)
    return [name for paths, _ in dense for name in paths]


def _inside(module: nn.Module, names: list[str]) -> set[str]:
    """All paths of a layer and of the modules in it."""
    return {f"{name}.{inner}" if inner else name for name in names for inner, _ in module.named_modules()}


def _as_conv1d(linear: nn.Linear) -> nn.Module:
    module: nn.Module = sys.modules["transformers.pytorch_utils"].Conv1D(linear.out_features, linear.in_features)
    module.weight = nn.Parameter(linear.weight.T.contiguous(), linear.weight.requires_grad)
    if linear.bias is not None:
        module.bias = linear.bias
    return module.train(linear.training)
