"""A file in ONNX Runtime against the model in torch: values at sizes that were not traced, and time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.input_moments import evaluating
from milkweed.convert.onnx.graph import TIMED, Graph, Sizes

TOLERANCE = 1e-4  # of the largest number of an output
MOST_RUNS, PATIENCE = 9, 4.0  # PATIENCE in seconds, for all runs of both


@dataclasses.dataclass(frozen=True)
class RunTimes:
    """Medians of alternating runs.

    Args:
        sizes: Of the free axes.
        torch: Seconds.
        onnx: Seconds.
        threads: How many both used.
    """

    sizes: dict[str, int]
    torch: float
    onnx: float
    threads: int


def session(file: Path, threads: int | None = None) -> Any:
    """Open a file in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own kinds
        raise FolderError(f"ONNX Runtime does not read the exported model: {first_line(error)}") from error


def largest_difference(graph: Graph, opened: Any, steps: Progress) -> float:
    """The largest difference of any output at any size, relative to the largest number of that output."""
    return max(_difference(one, other) for one, other in _pairs(graph, opened, steps))


def mean_cosine(graph: Graph, opened: Any, steps: Progress) -> float:
    """The mean cosine between vectors, the last axes of all outputs, of a file that is not meant to be exact."""
    cosines = [torch.cosine_similarity(one, other, -1) for one, other in _pairs(graph, opened, steps) if one.ndim]
    return float(torch.cat([each.flatten() for each in cosines]).mean())


def _pairs(graph: Graph, opened: Any, steps: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    """What torch gives and what a file gives, for every output at every size."""
    checked = graph.checked()
    for index, sizes in enumerate(checked):
        steps.count("comparing with torch", index, len(checked))
        inputs = graph.example(sizes, seed=index + 1)
        with evaluating(graph.module):
            expected = graph.module(*inputs.values())
        yield from _compared(graph, expected, run(opened, inputs, sizes), sizes, inputs.get("attention_mask"))


def run(opened: Any, inputs: dict[str, Tensor], sizes: Sizes) -> list[np.ndarray]:
    """Run a file."""
    wanted = {each.name for each in opened.get_inputs()}
    try:
        found: list[np.ndarray] = opened.run(None, {name: x.numpy() for name, x in inputs.items() if name in wanted})
    except Exception as error:  # ONNX Runtime's own kinds
        raise FolderError(f"the exported model fails in ONNX Runtime at {_said(sizes)}: {first_line(error)}") from error
    return found


def _compared(
    graph: Graph, expected: tuple[Tensor, ...], found: list[np.ndarray], sizes: Sizes, mask: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    for name, one, other in zip(graph.outputs, expected, found, strict=True):
        if tuple(one.shape) != other.shape:
            raise FolderError(
                f"{name} of the exported model has shape {other.shape}, not {tuple(one.shape)}, at {_said(sizes)}"
            )
        if one.isnan().any():
            raise FolderError(
                f"{name} of the model has NaN in torch already, at {_said(sizes)}, so that nothing can be compared; "
                "check its weights"
            )
        pair = one.double(), torch.from_numpy(other).double()
        if mask is not None and one.shape[:2] == mask.shape:
            # At padding, what comes out means nothing, and torch's forms of attention differ.
            pair = pair[0][mask.bool()], pair[1][mask.bool()]
        yield pair


def _difference(expected: Tensor, found: Tensor) -> float:
    if not expected.numel():
        return 0.0
    same = expected == found  # infinities included
    scale = expected[expected.isfinite()].abs().amax().clamp_min(1e-30) if expected.isfinite().any() else 1.0
    difference = torch.where(same, 0.0, (expected - found).abs() / scale)
    return float(difference.nan_to_num(nan=float("inf")).max())


def _said(sizes: Sizes) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "its only size"


def times(graph: Graph, opened: Any) -> RunTimes:
    """Take the time of torch and of ONNX Runtime by turns."""
    sizes = graph.sized(*TIMED)
    inputs = graph.example(sizes)
    arrays = {name: x.numpy() for name, x in inputs.items() if name in {each.name for each in opened.get_inputs()}}
    taken: tuple[list[float], list[float]] = ([], [])
    with evaluating(graph.module):
        start = time.perf_counter()
        while len(taken[0]) < 2 or (len(taken[0]) <= MOST_RUNS and time.perf_counter() - start < PATIENCE):
            taken[0].append(_seconds(lambda: graph.module(*inputs.values())))
            taken[1].append(_seconds(lambda: opened.run(None, arrays)))
    before, after = (statistics.median(each[1:]) for each in taken)
    return RunTimes(sizes, before, after, torch.get_num_threads())


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
