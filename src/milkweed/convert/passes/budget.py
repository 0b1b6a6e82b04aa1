"""What each layer may become under a budget, compared by what it costs the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.budget_search import check_budget, choose_within
from milkweed.convert.costs import count_parameters, dense_costs, structured_costs
from milkweed.convert.input_moments import Calibration, model_outputs
from milkweed.convert.passes.base import Draft, Pass, ProgressCallback
from milkweed.convert.passes.layer import project_site
from milkweed.convert.sites import LinearSite, replace
from milkweed.nn.structured_linear import LayerConfig

# The model is run once for every layer and candidate: on few batches.
_BATCHES_TO_COMPARE = 4


class Budget:
    """A number of parameters for the layers of a model, or a share if at most 1, and what may become of each.

    Among the candidates None keeps a layer dense. One that would not make a layer smaller does not count for it; layers
    that are named take it all the same, and must fit a candidate.
    """

    def __init__(
        self,
        sites: Mapping[str, LinearSite],
        parameters: float,
        candidates: Iterable[LayerConfig | None],
        named: Collection[str] = (),
    ) -> None:
        if isinstance(parameters, bool) or not isinstance(parameters, int | float):
            raise TypeError(f"parameters must be a number, or a share up to 1; got {parameters!r}")
        if not 0 < parameters < math.inf:
            raise ValueError(f"parameters must be above 0 and finite; got {parameters!r}")
        self.sites, self.candidates, self._named = sites, _checked(candidates), named
        before = sum(count_parameters(site.module) for site in sites.values())
        self.most = round(parameters * before) if parameters <= 1 else int(parameters)
        # Before any batch is run, so that a budget out of reach costs no time.
        self.sizes = {name: self._sizes(site) for name, site in sites.items()}
        costs = {name: list(sizes.values()) for name, sizes in self.sizes.items()}
        check_budget(costs, self.most, before if parameters <= 1 else None)

    def _sizes(self, site: LinearSite) -> dict[LayerConfig | None, int]:
        """Parameters under each candidate that fits the layer."""
        found: dict[LayerConfig | None, int] = {}
        dense, named = dense_costs(site), site.name in self._named
        for config in self.candidates:
            if config is None:
                found[None] = dense.parameters
                continue
            try:
                costs = structured_costs(site, config)
            except ValueError:
                continue
            if named or costs.saves(dense):
                found[config] = costs.parameters
        # A layer that no candidate fits or makes smaller stays.
        return found if found or named else {None: dense.parameters}

    def choose(
        self,
        model: nn.Module,
        calibration: Calibration,
        batches: Sequence[Any],
        progress: ProgressCallback,
    ) -> dict[str, LayerConfig | None]:
        """Pick for each layer by the error that it alone causes in the model's outputs."""
        looked_at = batches[:: -(-len(batches) // _BATCHES_TO_COMPARE)]
        dense = model_outputs(model, looked_at)
        if not all(outputs.isfinite().all() for outputs in dense):
            raise ValueError("the model gives outputs that are not finite for the calibration batches")
        options: dict[str, list[tuple[int, float, LayerConfig | None]]] = {}
        for done, (name, sizes) in enumerate(self.sizes.items(), 1):
            options[name] = []
            for config, size in sizes.items():
                error = 0.0
                if config is not None:
                    layer = project_site(self.sites[name], config, calibration[name])
                    changed = _outputs_with(model, self.sites[name], layer, looked_at)
                    error = _mean_squared_error(changed, dense)
                options[name].append((size, error, config))
            progress("comparing candidates", done, len(self.sizes))
        return choose_within(options, self.most)


def _checked(candidates: Iterable[LayerConfig | None]) -> list[LayerConfig | None]:
    example = "candidates=[None, MonarchConfig(2), MonarchConfig(4), MonarchConfig(8)]"
    if isinstance(candidates, str | LayerConfig) or not isinstance(candidates, Iterable):
        raise TypeError(f"candidates must be a list of configurations and None, e.g. {example}; got {candidates!r}")
    found = list(candidates)
    for each in found:
        if each is not None and not isinstance(each, LayerConfig):
            raise TypeError(f"candidates must be configurations, or None to stay dense; got {each!r}; e.g. {example}")
    if not any(found):
        raise ValueError(f"parameters, a budget, needs candidates to choose from, e.g. {example}")
    return found


def _mean_squared_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    squares = (float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(found, expected, strict=True))
    return sum(squares) / sum(each.numel() for each in expected)


def _outputs_with(model: nn.Module, site: LinearSite, layer: nn.Module, batches: Sequence[Any]) -> list[Tensor]:
    """What the model gives with one layer converted; the dense layer is put back."""
    replace(model, site.names, layer)
    try:
        return model_outputs(model, batches)
    finally:
        replace(model, site.names, site.module)


class WithinBudget(Pass):
    """Chooses one candidate for each selected layer, after calibration."""

    def __init__(self, parameters: float, candidates: Iterable[LayerConfig | None]) -> None:
        self.parameters, self.candidates = parameters, candidates

    def check(self, draft: Draft) -> None:
        """Refuse a budget out of reach."""
        self.budget = Budget(
            {name: draft.sites[name] for name in draft.choices}, self.parameters, self.candidates, draft.named
        )

    def run(self, draft: Draft) -> None:
        """Choose a candidate for every layer."""
        if draft.moments is None:
            raise ValueError("a budget needs calibration before it")
        chosen = self.budget.choose(draft.model, draft.moments, list(draft.batches), draft.progress)
        for name in (name for name, config in chosen.items() if config is None):
            alone = None not in self.budget.candidates and set(self.budget.sizes[name]) == {None}
            draft.reasons[name] = "no candidate that fits it saves anything" if alone else "dense within the budget"
        draft.choices = {name: config for name, config in chosen.items() if config is not None}
