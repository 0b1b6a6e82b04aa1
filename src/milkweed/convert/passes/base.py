"""What passes share: the conversion as far as it is planned, and what a pass is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from milkweed.convert.calibrate import Calibration
from milkweed.convert.configs import LayerConfig
from milkweed.convert.sites import LinearSite

Tell = Callable[[str, int, int], None]


@dataclasses.dataclass
class Draft:
    """A conversion in the making: each pass reads what those before it found, and adds its own.

    Args:
        model: The dense model; no pass changes it.
        sites: Its linear layers by name.
        choices: What becomes of the layers to convert, by name.
        reasons: Why the others stay.
        named: The layers to convert that a rule names exactly.
        notes: What a user should know.
        batches: What the model can be called with: a list where a pass reads them more than once.
        moments: Of the inputs of the layers to convert, if there are batches.
        orders: By the names of layers with common hidden units, makers first, the unit at each place.
        layers: The converted layers.
        errors: Of these in weights and in outputs, relative.
        speedups: Times of dense layers over those of converted ones.
        tell: Called with what is done, how many layers are done and how many there are.
    """

    model: nn.Module
    sites: Mapping[str, LinearSite]
    choices: dict[str, LayerConfig] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    named: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    batches: Any = None
    moments: Calibration | None = None
    orders: dict[tuple[str, ...], Tensor] = dataclasses.field(default_factory=dict)
    layers: dict[str, nn.Module] = dataclasses.field(default_factory=dict)
    errors: dict[str, tuple[float | None, float | None]] = dataclasses.field(default_factory=dict)
    speedups: dict[str, float] = dataclasses.field(default_factory=dict)
    tell: Tell = lambda *_: None


class Pass:
    """One step of planning."""

    def check(self, draft: Draft) -> None:
        """Refuse what cannot be done before any batch is read; layers are selected already.

        Args:
            draft: The conversion; it is not changed.

        Raises:
            ValueError: It cannot be done.
        """

    def run(self, draft: Draft) -> None:
        """Do the step.

        Args:
            draft: The conversion, which gains what was found.

        Raises:
            NotImplementedError: The pass does nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it does in run(draft)")
