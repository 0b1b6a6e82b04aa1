"""Carrying a plan out on a model, and going back to dense layers."""

from __future__ import annotations

import sys

import torch
from torch import nn

from milkweed.convert.configs import LayerConfig
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.record import structured_layers
from milkweed.convert.report import ConversionReport
from milkweed.convert.rules import Rules
from milkweed.convert.sites import find_sites, is_conv1d, name_without_adapter, replace
from milkweed.convert.skeleton import skeleton_of
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


def convert_(model: nn.Module, plan: ConversionPlan | Rules | LayerConfig | None = None) -> ConversionReport:
    """Replace linear layers by the structured ones of a plan, in place: all of them or, after an error, none.

    Args:
        model: The model that was planned for.
        plan: From `plan_conversion`, or rules or one configuration, for which a plan without calibration is made.

    Returns:
        What was done.

    Raises:
        ValueError: The plan was made for another model, or weights have changed since.
    """
    if not isinstance(plan, ConversionPlan):
        plan = plan_conversion(model, plan, tokens=None)
    sites = {site.name: site for site in find_sites(model)}
    for name, (weight, version) in plan.weights.items():
        if name not in sites or sites[name].module.weight is not weight:
            raise ValueError(f"the plan was made for another model: layer {name!r} is not the one that was planned for")
        if weight._version != version:
            raise ValueError(f"the weight of layer {name!r} has changed since the plan was made; plan again")
    for line in plan.report.converted:
        layer = plan.layers[line.name]
        replace(model, line.names, layer.train(sites[line.name].module.training))
    return plan.report


@torch.no_grad()
def densify_(model: nn.Module) -> list[str]:
    """Multiply the factors of all structured linear layers out, in place: the same outputs from dense layers.

    Where transformers knows the model, packed layers become ``Conv1D`` again if its architecture has them. Under an
    adapter the base becomes dense, and the adapter stays as it is.

    Args:
        model: Any module.

    Returns:
        The names of the layers that are dense now, all paths of each.

    Raises:
        ValueError: The model has no structured layer, or is itself one.
    """
    if isinstance(model, StructuredLinear | ConcatLinear):
        raise ValueError("model is itself a structured layer; use model.to_linear()")
    found = structured_layers(model)
    if not found:
        raise ValueError("model has no structured linear layer; it is dense already")
    skeleton = skeleton_of(model)
    dense: list[tuple[tuple[str, ...], nn.Module]] = []
    for module, names in found.items():
        assert isinstance(module, StructuredLinear | ConcatLinear)
        linear = module.to_linear()
        transposed = skeleton is not None and is_conv1d(skeleton.get_submodule(name_without_adapter(model, names[0])))
        dense.append((tuple(names), _as_conv1d(linear) if transposed else linear))
    for paths, replacement in dense:
        replace(model, paths, replacement)
    return [name for paths, _ in dense for name in paths]


def _as_conv1d(linear: nn.Linear) -> nn.Module:
    module: nn.Module = sys.modules["transformers.pytorch_utils"].Conv1D(linear.out_features, linear.in_features)
    module.weight = nn.Parameter(linear.weight.T.contiguous(), linear.weight.requires_grad)
    if linear.bias is not None:
        module.bias = linear.bias
    return module.train(linear.training)
