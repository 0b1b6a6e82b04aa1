"""What a conversion does to one layer."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One linear layer, before and after.

    Args:
        names: All paths under which the model reaches it.
        in_features: Size of each input.
        out_features: Size of each output.
        layer: What it becomes, as `milkweed.nn.factory.build_linear` reads it; None if it stays.
        parts: Matrices that stand side by side in it: 3 for a packed query, key and value, 2 for a gate and its values.
        parameters_before: Parameters of the dense layer.
        parameters_after: Parameters of what it becomes.
        flops_before: Operations for one input.
        flops_after: The same afterwards.
        relative_error: ‖W − M‖ / ‖W‖; None if it stays, or has no numbers.
        output_error: Relative error of its outputs on the calibration batches; None without any.
        speedup: Time of the dense layer over that of its successor, as measured here; None if not measured.
        reason: Why it stays, or None.

    Example:
        >>> report = mw.convert_(nn.Sequential(nn.Linear(256, 256)), {"0": mw.MonarchConfig(nblocks=4)})
        >>> line = report.layers[0]
        >>> line.name, line.parameters_before, line.parameters_after
        ('0', 65792, 33024)
    """

    names: tuple[str, ...]
    in_features: int
    out_features: int
    layer: dict[str, Any] | None
    parts: int
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    relative_error: float | None = None
    output_error: float | None = None
    speedup: float | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """The first path."""
        return self.names[0]

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros added to inputs and to the outputs of each part, for sizes that nblocks does not divide."""
        blocks = (self.layer or {}).get("nblocks", 1)
        return -self.in_features % blocks, -(self.out_features // self.parts) % blocks


@dataclasses.dataclass(frozen=True)
class KeptMatrix:
    """A matrix, or several in one tensor, that belongs to none of the linear layers and stays as it is.

    Args:
        names: All paths under which the model reaches it.
        shape: Its sizes.
        parameters: How many numbers it holds.
        reason: Why it stays.

    Example:
        >>> model = nn.ModuleDict({"tokens": nn.Embedding(100, 16), "out": nn.Linear(16, 100)})
        >>> model.forward = lambda tokens: model["out"](model["tokens"](tokens))
        >>> plan = mw.plan_conversion(model, mw.MonarchConfig(nblocks=4))
        >>> plan.report.kept[0].name, plan.report.kept[0].shape
        ('tokens.weight', (100, 16))
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    reason: str

    @property
    def name(self) -> str:
        """The first path."""
        return self.names[0]
