"""Projecting all chosen layers: each by itself, or on top of those before it."""

from __future__ import annotations

from torch import Tensor, nn

from milkweed.convert.input_moments import Calibration
from milkweed.convert.passes.base import Draft, Pass
from milkweed.convert.passes.layer import project_site, weight_and_output_error
from milkweed.convert.passes.order import orders_by_feed_forward, reordered, reordered_sites
from milkweed.convert.passes.sequential import project_sequentially
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import LayerConfig


class Project(Pass):
    """Projects every layer for what it reads in the dense model, or for its weights without calibration."""

    def run(self, draft: Draft) -> None:
        """Project the layers."""
        orders = orders_by_feed_forward(draft.orders)
        there = {**draft.sites, **reordered_sites(draft.sites, orders)}
        columns = {feed_forward.reader: order for feed_forward, order in orders.items()}
        for done, (name, config) in enumerate(draft.choices.items(), 1):
            draft.layers[name], draft.errors[name] = _one(there[name], config, draft.moments, columns.get(name))
            draft.progress("projecting", done, len(draft.choices))


class ProjectSequentially(Pass):
    """Projects layer by layer, each for what it reads in the model as far as it is converted."""

    def run(self, draft: Draft) -> None:
        """Project the layers."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            draft.progress("projecting", done, len(draft.choices))

        with reordered(draft.model, draft.sites, orders_by_feed_forward(draft.orders)) as there:
            draft.layers, errors = project_sequentially(draft.model, draft.choices, there, list(draft.batches), advance)
        draft.errors = {
            name: (weight_and_output_error(there[name], layer, None)[0], errors[name])
            for name, layer in draft.layers.items()
        }


def _one(
    site: LinearSite, config: LayerConfig, moments: Calibration | None, columns: Tensor | None
) -> tuple[nn.Module, tuple[float | None, float | None]]:
    # A function of its own, so that one layer's moments are let go before the next one's are gathered.
    read = None if moments is None else moments[site.name]
    if read is not None and columns is not None:
        read = read.reordered(columns)
    layer = project_site(site, config, read)
    return layer, weight_and_output_error(site, layer, read)
