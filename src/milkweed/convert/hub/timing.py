"""How long the whole model takes, dense and converted, on this machine."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.hub.exchange import exchanged
from milkweed.convert.hub.inputs import example_inputs
from milkweed.convert.input_moments import evaluating, run_batch
from milkweed.convert.plan import ConversionPlan

BATCH, LENGTH, MOST_RUNS, PATIENCE = 8, 128, 7, 30.0  # PATIENCE in seconds, for all runs


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians of alternating runs."""

    shape: tuple[int, ...]  # of the inputs
    device: str  # where the model was
    before: float  # seconds of the dense model
    after: float  # seconds of the converted one
    runs: int  # of each

    def headline(self, threads: int | None = None) -> tuple[str, str]:
        """Say how long the model takes, dense and converted, and on what that was measured."""
        shape = " × ".join(map(str, self.shape))
        beside = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
        return (
            f"{_milliseconds(self.before)} -> {_milliseconds(self.after)} ({self.before / self.after:.2f}×)",
            f"inputs {shape} on {self.device}{beside}; median of {self.runs} runs",
        )

    def as_dict(self) -> dict[str, object]:
        """Plain values for a file; the names say that times are in seconds."""
        return {
            "inputs": list(self.shape),
            "device": self.device,
            "runs": self.runs,
            "seconds_before": self.before,
            "seconds_after": self.after,
            "speedup": self.before / self.after,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timing:
        """Read what `as_dict` gave."""
        return cls(
            tuple(map(int, values["inputs"])),
            str(values["device"]),
            float(values["seconds_before"]),
            float(values["seconds_after"]),
            int(values["runs"]),
        )


def time_model(model: nn.Module, plan: ConversionPlan) -> Timing | None:
    """Run a model dense and converted by turns, its layers exchanged for a while.

    Inputs are 8 × 128 tokens, fewer if memory is short; None for a model whose inputs cannot be made up.
    """
    batch = BATCH
    while batch:
        try:
            inputs = example_inputs(model, batch, LENGTH)
            return None if inputs is None else _alternate(model, plan, inputs)
        except torch.OutOfMemoryError:
            batch //= 2
    return None


def _alternate(model: nn.Module, plan: ConversionPlan, inputs: dict[str, Tensor]) -> Timing:
    device = next(model.parameters()).device
    times: tuple[list[float], list[float]] = ([], [])
    with evaluating(model):
        start, runs = time.perf_counter(), 0
        # The first run of each makes plans and buffers.
        while runs < 2 or (runs <= MOST_RUNS and time.perf_counter() - start < PATIENCE):
            times[0].append(_seconds(model, inputs, device))
            with exchanged(model, plan):
                times[1].append(_seconds(model, inputs, device))
            runs += 1
    before, after = (statistics.median(taken[1:]) for taken in times)
    return Timing(tuple(next(iter(inputs.values())).shape), str(device), before, after, runs - 1)


def _seconds(model: nn.Module, inputs: dict[str, Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    run_batch(model, inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
