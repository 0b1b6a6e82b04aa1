"""Layers of a kind taken together: the same place in every block of a model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from milkweed.convert.layer_report import KeptMatrix, LayerReport

L = TypeVar("L", LayerReport, KeptMatrix)


@dataclasses.dataclass(frozen=True)
class LayerGroup(Generic[L]):
    """Layers, or matrices that stay, whose names differ only in numbers."""

    name: str  # ``encoder.layer.0-5.output.dense``; the layer's own if it is alone
    lines: tuple[L, ...]  # the layers

    def total(self, field: str) -> int:
        """The sum of a field over all layers."""
        return sum(getattr(line, field) for line in self.lines)

    def extremes(self, field: str) -> tuple[float, float] | None:
        """The least and the greatest value of a field, or None if no layer has one."""
        values = [value for line in self.lines if (value := getattr(line, field)) is not None]
        return (min(values), max(values)) if values else None


def by_kind(lines: Iterable[LayerReport]) -> list[LayerGroup[LayerReport]]:
    """Group layers by name and sizes, in the order of their first layers."""
    return _grouped(lines, lambda line: (line.in_features, line.out_features))


def by_outcome(lines: Iterable[LayerReport]) -> list[LayerGroup[LayerReport]]:
    """Group layers by name, sizes and what they become, in the order of their first layers."""
    return _grouped(
        lines, lambda line: (line.in_features, line.out_features, json.dumps(line.layer), line.parts, line.reason)
    )


def by_reason(lines: Iterable[KeptMatrix]) -> list[LayerGroup[KeptMatrix]]:
    """Group matrices that stay by name, shape and reason, in the order of their first matrices."""
    return _grouped(lines, lambda line: (line.shape, line.reason))


def depth(line: LayerReport) -> int:
    """Which block of a model a layer is in: the first number in its name, 0 if there is none."""
    numbers = [int(part) for part in line.name.split(".") if part.isdecimal()]
    return numbers[0] if numbers else 0


def _grouped(lines: Iterable[L], key: Callable[[L], object]) -> list[LayerGroup[L]]:
    found: dict[object, list[L]] = {}
    for line in lines:
        pattern = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", line.name)
        found.setdefault((pattern, key(line)), []).append(line)
    return [LayerGroup(_common_name([line.name for line in group]), tuple(group)) for group in found.values()]


def _common_name(names: Sequence[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(
        column[0] if len(set(column)) == 1 else _ranges(sorted({int(part) for part in column})) for column in columns
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
