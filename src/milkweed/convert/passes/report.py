"""Writing down what was planned, a line for each layer and for each matrix beside them."""

from __future__ import annotations

from collections.abc import Sequence

from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.costs import dense_costs, layer_costs
from milkweed.convert.experts import in_experts
from milkweed.convert.layer_report import KeptMatrix, LayerReport
from milkweed.convert.passes.base import Draft
from milkweed.convert.passes.survey import share_in


def report(draft: Draft, kept: Sequence[KeptMatrix]) -> ConversionReport:
    """Report on a conversion of which all passes are done, and on the matrices that `survey` found."""
    return ConversionReport(
        tuple(_line(draft, name) for name in draft.sites),
        sum(p.numel() for p in draft.model.parameters()),
        tuple(draft.orders),
        kept=tuple(kept),
        share=share_in(draft.model, draft.sites.values(), kept),
        notes=(*draft.notes, *_of_experts(draft)),
    )


def _of_experts(draft: Draft) -> list[str]:
    """What a user should know about the layers of experts."""
    layers = in_experts(draft.model, draft.layers)
    unseen = [name for name in layers if draft.batches is not None and draft.errors[name][1] is None]
    found = ["a token passes through some experts only; the FLOPs here count all of them"] if layers else []
    if unseen:
        found.append(f"{len(unseen)} layers of experts got no calibration inputs and are projected for their weights")
    return found


def _line(draft: Draft, name: str) -> LayerReport:
    site, config, layer = draft.sites[name], draft.choices.get(name), draft.layers.get(name)
    relative, output = draft.errors.get(name) or (None, None)
    before = dense_costs(site)
    after = before if layer is None else layer_costs(layer)
    return LayerReport(
        names=site.names,
        in_features=site.in_features,
        out_features=site.out_features,
        layer=None if config is None or layer is None else config.spec(),
        parts=site.parts,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        flops_before=before.flops,
        flops_after=after.flops,
        relative_error=relative,
        output_error=output,
        speedup=draft.speedups.get(name),
        reason=draft.reasons.get(name) if layer is None else None,
    )
