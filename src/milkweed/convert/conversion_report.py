"""What a conversion does to each layer, as numbers, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milkweed._arguments import checked
from milkweed._files import atomic_write
from milkweed._version import __version__
from milkweed.convert.groups import LayerGroup, by_outcome, by_reason
from milkweed.convert.layer_report import KeptMatrix, LayerReport


@dataclasses.dataclass(frozen=True, repr=False)
class ConversionReport:
    """What a conversion does to a model.

    Args:
        layers: A line for each linear layer, converted or not.
        model_parameters: Parameters of the whole model before.
        reordered: Names of layers whose common hidden units were put into another order.
        distillation_losses: Of every step of training against the dense model, if there was any; a loss of 1 is that
            of guessing each mean. The errors of layers are those before.
        kept: A line for each matrix beside the linear layers, all of which stay.
        share: Of the numbers that the model holds, the part that is in linear layers.
        notes: What else a user should know.

    Example:
        >>> report = mw.convert_(nn.Sequential(nn.Linear(256, 256)), {"0": mw.convert.LowRankConfig(rank=8)})
        >>> report.model_parameters, report.model_parameters_after, len(report.converted)
        (65792, 4352, 1)
    """

    layers: tuple[LayerReport, ...]
    model_parameters: int
    reordered: tuple[tuple[str, ...], ...] = ()
    distillation_losses: tuple[float, ...] = ()
    kept: tuple[KeptMatrix, ...] = ()
    share: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The lines of layers that are converted."""
        return tuple(line for line in self.layers if line.layer is not None)

    @property
    def model_parameters_after(self) -> int:
        """Parameters of the whole model afterwards."""
        return self.model_parameters + sum(line.parameters_after - line.parameters_before for line in self.converted)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before going on."""
        return tuple(each for each in (*self.notes, self._beside(), self._slow()) if each)

    def _beside(self) -> str:
        """Where most of a model is, if not in its linear layers."""
        if self.share >= 0.5 or not self.kept:
            return ""
        largest = max(self.kept, key=lambda line: line.parameters)
        return (
            f"linear layers hold only {self.share:.0%} of all parameters; the largest matrix beside them is "
            f"{largest.name} with {largest.parameters:,} numbers: {largest.reason}"
        )

    def _slow(self) -> str:
        slow = [line for line in self.converted if line.speedup is not None and line.speedup < 1]
        if not slow:
            return ""
        worst = min(slow, key=lambda line: line.speedup or 1.0)
        return (
            f"{len(slow)} of {len(self.converted)} layers were slower than dense when measured now, {worst.name} "
            f"({worst.out_features} x {worst.in_features}) at {worst.speedup:.2f}x; if that holds on an idle machine, "
            "keep them dense for speed"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Write the lines as text, with `HEADINGS` above them.

        Returns:
            One row for each layer, and for each matrix beside them.
        """
        kept = [
            (line.name, _sizes(line), f"stays: {line.reason}", "", f"{line.parameters:,}", *[""] * 4)
            for line in self.kept
        ]
        return [*(_row(line) for line in self.layers), *kept]

    def summary(self) -> str:
        """Say in one line what the conversion does.

        Returns:
            Layers and parameters before and after.
        """
        flops = [sum(getattr(line, f"flops_{when}") for line in self.layers) for when in ("before", "after")]
        return (
            f"{len(self.converted)} of {len(self.layers)} linear layers converted; linear layers hold "
            f"{self._percent()} of all parameters; parameters {self.model_parameters:,} -> "
            f"{self.model_parameters_after:,}; FLOPs of linear layers per token {flops[0]:,} -> {flops[1]:,}"
            f"{self._reordered()}{self._distilled()}"
        )

    def _percent(self) -> str:
        # What is nearly all, or nearly nothing, is not rounded to all or nothing.
        least, most = (0.001 if self.share > 0 else 0.0), (0.999 if self.share < 1 else 1.0)
        share = min(max(self.share, least), most)
        return f"{share:.1%}" if share not in {0.0, 1.0} and (share < 0.01 or share > 0.99) else f"{share:.0%}"

    def _reordered(self) -> str:
        return f"; hidden units of {len(self.reordered)} feed-forward layers reordered" if self.reordered else ""

    def _distilled(self) -> str:
        losses = self.distillation_losses
        if not losses:
            return ""
        tenth = -(-len(losses) // 10)
        first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
        return f"; distilled in {len(losses):,} steps, relative squared error {first:.3g} -> {last:.3g}"

    def __repr__(self) -> str:
        """The table: layers that fare alike in one entry, the sum, and what to know, in lines for a terminal."""
        notes = [self.summary(), *(f"warning: {warning}" for warning in self.warnings)]
        wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
        return "\n".join([*_table(self), *wrapped])

    @checked
    def save(
        self,
        path: str | os.PathLike[str],
        timing: Mapping[str, Any] | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the report as JSON, atomically.

        Args:
            path: The file.
            timing: Of the whole model before and after, as far as it was measured; written as it is.
            further: Other values by name, which come first; written as they are.
        """
        values = dict(further or {}) | {
            "milkweed": __version__,
            "parameters_before": self.model_parameters,
            "parameters_after": self.model_parameters_after,
            "timing": None if timing is None else dict(timing),
            "warnings": self.warnings,
            "notes": self.notes,
            "reordered": self.reordered,
            "distillation_losses": self.distillation_losses,
            "share_in_linear_layers": self.share,
            "layers": [dataclasses.asdict(line) for line in self.layers],
            "kept": [dataclasses.asdict(line) for line in self.kept],
        }
        with atomic_write(path) as temporary:
            Path(temporary).write_text(json.dumps(values, indent=1) + "\n")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConversionReport:
        """Read the values that `save` writes.

        Args:
            values: As JSON gives them.

        Returns:
            The report.
        """
        layers = [dict(each) for each in values["layers"]]
        kept = [dict(each) for each in values.get("kept", ())]
        return cls(
            tuple(LayerReport(**each | {"names": tuple(each["names"])}) for each in layers),
            int(values["parameters_before"]),
            tuple(map(tuple, values.get("reordered", ()))),
            tuple(map(float, values.get("distillation_losses", ()))),
            tuple(KeptMatrix(**each | {"names": tuple(each["names"]), "shape": tuple(each["shape"])}) for each in kept),
            float(values.get("share_in_linear_layers", 1.0)),
            tuple(map(str, values.get("notes", ()))),
        )


WIDTH = 100
HEADINGS = ("layer", "shape", "becomes", "padding", "parameters", "FLOPs", "weight error", "output error", "speed")


def describe(spec: dict[str, Any], parts: int = 1) -> str:
    """Write a layer's configuration for people: ``monarch, nblocks 4``."""
    options = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
    return (f"{parts} x " if parts > 1 else "") + f"{spec['name']}, {options}"


def _row(line: LayerReport) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    shape = f"{line.out_features} x {line.in_features}"
    if line.layer is None:
        return (line.name, shape, f"stays: {line.reason}", "", f"{line.parameters_before:,}", "", "", "", "")
    return (
        line.name,
        shape,
        describe(line.layer, line.parts),
        "" if line.padding == (0, 0) else f"{line.padding[0]} in, {line.padding[1]} out",
        f"{line.parameters_before:,} -> {line.parameters_after:,}",
        f"{line.flops_after / line.flops_before:.0%}",
        number(line.relative_error, ".3f"),
        number(line.output_error, ".3f"),
        "" if line.speedup is None else f"{line.speedup:.2f}x",
    )


def _table(report: ConversionReport) -> list[str]:
    """Lines for all layers: names stand above their numbers, however long they are."""
    error = "output_error" if any(line.output_error is not None for line in report.converted) else "relative_error"
    entries = [(group, _cells(group, error)) for group in by_outcome(report.layers)]
    beside = by_reason(report.kept)
    heading = ("layers", "parameters", "FLOPs", "output error" if error == "output_error" else "weight error", "speed")
    kept = [
        (group, (f"    {_sizes(group.lines[0])}", f"{group.total('parameters'):,}", "", "", "")) for group in beside
    ]
    everything = ("all linear layers", *_costs(LayerGroup("", report.layers)), "", "")
    rows = [heading, everything, *(cells for _, cells in [*entries, *kept])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def row(cells: tuple[str, ...]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    def entry(group: LayerGroup[Any], cells: tuple[str, ...]) -> list[str]:
        count, reason = len(group.lines), group.lines[0].reason
        title = group.name if count == 1 else f"{group.name}, {count} {'layers' if group in layers else 'matrices'}"
        why = "" if reason is None else f"stays: {reason}"
        return [title, row(cells), *textwrap.wrap(why, WIDTH, initial_indent="    ", subsequent_indent="    ")]

    layers = [group for group, _ in entries]
    lines = [row(heading), *(line for each in entries for line in entry(*each)), row(everything)]
    if not kept:
        return lines
    return [*lines, "matrices beside them, which stay", *(line for each in kept for line in entry(*each))]


def _sizes(line: KeptMatrix) -> str:
    return " x ".join(map(str, line.shape))


def _cells(group: LayerGroup[LayerReport], error: str) -> tuple[str, ...]:
    first = group.lines[0]
    shape = f"    {first.out_features} x {first.in_features}"
    if first.layer is None:
        return (shape, f"{group.total('parameters_before'):,}", "", "", "")
    padding = "" if first.padding == (0, 0) else f", padded {first.padding[0]} in, {first.padding[1]} out"
    return (
        f"{shape} -> {describe(first.layer, first.parts)}{padding}",
        *_costs(group),
        _range(group, error, "{:.3f}"),
        _range(group, "speedup", "{:.2f}x"),
    )


def _costs(group: LayerGroup[LayerReport]) -> tuple[str, str]:
    """Parameters before and after, and the share of the operations that is left."""
    counts = [group.total(f"parameters_{when}") for when in ("before", "after")]
    share = group.total("flops_after") / max(1, group.total("flops_before"))
    return f"{counts[0]:,} -> {counts[1]:,}", f"{share:.0%}"


def _range(group: LayerGroup[LayerReport], field: str, form: str) -> str:
    found = group.extremes(field)
    return "" if found is None else "-".join(dict.fromkeys(form.format(value) for value in found))
