"""Observing what the layers to convert read; `milkweed.convert.input_moments` has the statistics."""

from __future__ import annotations

from milkweed.convert.experts import in_experts
from milkweed.convert.input_moments import Calibration
from milkweed.convert.passes.base import Draft, Pass


class Calibrate(Pass):
    """Gives a draft the moments of its layers' inputs; batches are run when they are first asked for."""

    def run(self, draft: Draft) -> None:
        """Make the moments."""
        layers = {name: draft.sites[name].module for name in draft.choices}
        draft.moments = Calibration(draft.model, layers, draft.batches, unsure=in_experts(draft.model, layers))
