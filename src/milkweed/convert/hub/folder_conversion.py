"""What was done to a folder: the figures people look for first, then every layer; as text and as JSON."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from milkweed._arguments import checked
from milkweed._files import read_json_file
from milkweed._machine import describe_machine, describe_versions
from milkweed.convert.conversion_report import WIDTH, ConversionReport
from milkweed.convert.evaluation.results import EndToEnd
from milkweed.convert.hub.destination import REPORT
from milkweed.convert.hub.timing import Timing

FORMAT = 2
PACKAGES = ("milkweed", "torch", "transformers", "safetensors", "numpy")
UNITS = {"seconds_*": "s", "bytes_*": "bytes; 1 MB is 1,000,000 bytes", "flops_*": "operations for one token"}


@dataclasses.dataclass(frozen=True)
class Size:
    """Bytes of all weights.

    Args:
        bytes_before: As the dense model is stored.
        bytes_after: Of the converted model.

    Example:
        >>> mw.convert.Size(90_900_000, 64_300_000).text()
        '90.9 MB -> 64.3 MB (-29%)'
    """

    bytes_before: int
    bytes_after: int

    def text(self) -> str:
        """Write the sizes down for people.

        Returns:
            Before, after and the change.
        """
        change = self.bytes_after / max(1, self.bytes_before) - 1
        return f"{_megabytes(self.bytes_before)} -> {_megabytes(self.bytes_after)} ({change:+.0%})"


@dataclasses.dataclass(frozen=True, repr=False)
class FolderConversion:
    """What was done to a folder; prints as a table.

    Args:
        report: What became of each layer.
        timing: Of the whole model before and after, or None if it was not measured.
        end_to_end: Figures of the whole model; None for a plan.
        size: Of the weights before and after; None for a plan.
        name: Of the model, without the folders above it.
        environment: Where it was measured, by which versions.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256))
        >>> report = mw.convert_(model, {"0": mw.convert.LowRankConfig(rank=8)})
        >>> mw.convert.FolderConversion(report).timing is None
        True
    """

    report: ConversionReport
    timing: Timing | None = None
    end_to_end: EndToEnd | None = None
    size: Size | None = None
    name: str = ""
    environment: Mapping[str, Any] | None = None

    def headline(self) -> list[tuple[str, str, str]]:
        """Write down what people open a report for.

        Returns:
            Name, value and detail of each figure: end to end first, then speed and size; none for a plan.
        """
        lines = [] if self.end_to_end is None else self.end_to_end.lines()
        if self.timing is not None:
            lines.append(("speed", *self.timing.headline(self._threads())))
        elif self.end_to_end is not None:
            lines.append(("speed", "not measured", "inputs for this kind of model cannot be made up"))
        if self.size is not None:
            parameters = f"{self.report.model_parameters:,} -> {self.report.model_parameters_after:,} parameters"
            lines.append(("size of weights", self.size.text(), parameters))
        return lines

    def where(self) -> str:
        """Say on which machine and by which versions it was measured.

        Returns:
            One line; empty if that is not known.
        """
        if not self.environment:
            return ""
        versions = [f"{name} {version}" for name, version in self.environment["versions"].items() if version]
        machine = self.environment["machine"]
        processors = ", ".join([machine["processor"], *machine["gpus"]])
        return f"{processors}, {machine['threads']} threads; {', '.join(versions)}"

    def _threads(self) -> int | None:
        return None if not self.environment else int(self.environment["machine"]["threads"])

    def __repr__(self) -> str:
        lines = self.headline()
        width = max((len(name) for name, _, _ in lines), default=0)
        shown = [f"{name.ljust(width)}  {value}" + (f"  [{detail}]" if detail else "") for name, value, detail in lines]
        wrapped = [line for each in shown for line in textwrap.wrap(each, WIDTH, subsequent_indent=" " * (width + 2))]
        if self.end_to_end is not None and self.end_to_end.figures and self.end_to_end.data:
            wrapped.append(f"measured on {self.end_to_end.data}")
        return "\n".join([*wrapped, *([""] if wrapped else []), repr(self.report)])

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, atomically.

        Args:
            path: The file.
        """
        further = {
            "format": FORMAT,
            "name": self.name,
            "end_to_end": None if self.end_to_end is None else self.end_to_end.as_dict(),
            "size": None if self.size is None else dataclasses.asdict(self.size),
            "environment": self.environment,
            "units": UNITS,
        }
        self.report.save(path, None if self.timing is None else self.timing.as_dict(), further)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> FolderConversion:
        """Read the report of a converted folder; what earlier versions wrote as well.

        Args:
            path: The folder, or its ``conversion.json``.

        Returns:
            What was done.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds something else, or was written by a later version.
        """
        file = Path(path) / REPORT if Path(path).is_dir() else Path(path)
        values = read_json_file(file)
        if not isinstance(values, dict) or "layers" not in values:
            raise ValueError(f"{file} is no report of a conversion")
        # The first versions wrote no number.
        if values.get("format", 1) not in range(1, FORMAT + 1):
            raise ValueError(
                f"{file} has format {values['format']}, written by milkweed {values.get('milkweed')}; this version "
                f"reads up to {FORMAT}: install a later one"
            )
        try:
            return cls._from_dict(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: {error!r}") from error

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> FolderConversion:
        timing, end_to_end, size = (values.get(name) for name in ("timing", "end_to_end", "size"))
        return cls(
            ConversionReport.from_dict(values),
            None if timing is None else Timing.from_dict(timing),
            None if end_to_end is None else EndToEnd.from_dict(end_to_end),
            None if size is None else Size(int(size["bytes_before"]), int(size["bytes_after"])),
            str(values.get("name", "")),
            values.get("environment"),
        )


def stored_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of tensors as they are stored, which need not have numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights; what several names share counts once."""
    unique = {id(each): each for each in model.state_dict(keep_vars=True).values() if isinstance(each, torch.Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


def environment() -> dict[str, Any]:
    """The machine and versions at hand."""
    return {"machine": describe_machine(), "versions": describe_versions(PACKAGES)}


def file_name(name: str) -> str:
    """What a model is called without the folders above it; names on the hub stay whole."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    return path.name if path.name not in {"", ".."} else path.resolve().name


def _megabytes(count: int) -> str:
    megabytes = count / 1e6
    return f"{megabytes:,.0f} MB" if megabytes >= 100 else f"{megabytes:.3g} MB"
