"""What an export gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from milkweed.convert.onnx.checking import RunTimes

Shape = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """One ONNX file that was written.

    Args:
        path: Where.
        bytes: Its size, with the weights beside it if they are in a file of their own.
        opset: The version of ONNX's operations.
        inputs: Shapes by name; an axis whose size is free is a name.
        outputs: The same.
        limits: The largest sizes of free axes, where there are any.
        difference: The largest difference of an output from torch's, relative to the largest number of it.
        int8_cosine: Of a file with weights of 8 bits: the mean cosine between its outputs and torch's, on made-up
            inputs. The difference is that of the file before it was rounded.
        times: Of torch and of ONNX Runtime.

    Example:
        >>> done = mw.convert.export_onnx(mw.nn.MonarchLinear(16, 16, nblocks=2).eval(), "m.onnx")  # doctest: +SKIP
        >>> done.files[0].inputs  # doctest: +SKIP
        {'x': ('batch', 16)}
    """

    path: Path
    bytes: int
    opset: int
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    limits: Mapping[str, int]
    difference: float
    int8_cosine: float | None
    times: RunTimes

    def rows(self) -> list[tuple[str, str]]:
        """What there is to say of the file, by subject."""
        compared = f"{self.difference:.1e} of the largest number"
        if self.int8_cosine is not None:
            compared += f" before rounding to 8 bits; cosine {self.int8_cosine:.3f} after"
        times = self.times
        where = ", ".join(f"{axis} {size}" for axis, size in times.sizes.items())
        threads = f"{times.threads} thread{'s' * (times.threads != 1)}"
        return [
            ("file", f"{self.path}, {self.bytes / 1e6:,.1f} MB, opset {self.opset}"),
            *((f"input {name}", self._said(shape)) for name, shape in self.inputs.items()),
            *((f"output {name}", self._said(shape)) for name, shape in self.outputs.items()),
            ("largest difference from torch", compared),
            (
                "time",
                f"{_milliseconds(times.torch)} torch, {_milliseconds(times.onnx)} ONNX Runtime, "
                f"{times.torch / times.onnx:.2f}× ({', '.join(each for each in (where, threads) if each)})",
            ),
        ]

    def _said(self, shape: Shape) -> str:
        limited = {axis: f"{axis} (up to {limit})" for axis, limit in self.limits.items()}
        return " × ".join(limited.get(str(axis), str(axis)) for axis in shape) or "a number"


@dataclasses.dataclass(frozen=True, repr=False)
class OnnxExport:
    """The files of an exported model; prints as a table.

    Args:
        files: One, or an encoder and a decoder.
        beside: Names of the tokenizer's and other files that were copied.

    Example:
        >>> model = mw.models.SequenceModel(1, 10, d_model=8, depth=1)
        >>> done = mw.convert.export_onnx(model, "my-model.onnx")  # doctest: +SKIP
        >>> done.files[0].inputs  # doctest: +SKIP
        {'inputs': ('batch_size', 'sequence_length', 1), 'lengths': ('batch_size',)}
    """

    files: tuple[OnnxFile, ...]
    beside: tuple[str, ...] = ()

    def __repr__(self) -> str:
        rows = [row for file in self.files for row in file.rows()]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{1 if seconds < 0.1 else 0}f} ms"
