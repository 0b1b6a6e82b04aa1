"""What passes share: the conversion as far as it is planned, and what a pass is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from milkweed.convert.input_moments import Calibration
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import LayerConfig

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is done, how many layers are done and how many there are."""


@dataclasses.dataclass
class Draft:
    """A conversion in the making: each pass reads what those before it found, and adds its own."""

    model: nn.Module  # the dense model; no pass changes it
    sites: Mapping[str, LinearSite]  # its linear layers by name
    # What becomes of the layers to convert, by name.
    choices: dict[str, LayerConfig] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)  # why the others stay
    named: frozenset[str] = frozenset()  # the layers to convert that a rule names exactly
    notes: tuple[str, ...] = ()  # what a user should know
    batches: Any = None  # what the model can be called with: a list where a pass reads them more than once
    moments: Calibration | None = None  # of the inputs of the layers to convert, if there are batches
    # By the names of layers with common hidden units, makers first, the unit at each place.
    orders: dict[tuple[str, ...], Tensor] = dataclasses.field(default_factory=dict)
    layers: dict[str, nn.Module] = dataclasses.field(default_factory=dict)  # the converted layers
    # Of these in weights and in outputs, relative.
    errors: dict[str, tuple[float | None, float | None]] = dataclasses.field(default_factory=dict)
    # Times of dense layers over those of converted ones.
    speedups: dict[str, float] = dataclasses.field(default_factory=dict)
    progress: ProgressCallback = lambda *_: None


class Pass:
    """One step of planning."""

    def check(self, draft: Draft) -> None:
        """Refuse what cannot be done before any batch is read; layers are selected already."""

    def run(self, draft: Draft) -> None:
        """Do the step; the draft gains what was found."""
        raise NotImplementedError(f"{type(self).__name__} must say what it does in run(draft)")
