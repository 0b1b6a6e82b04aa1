from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import command, runner
from benchmarks.case import Case, Figure, Work
from benchmarks.machine import Ceilings

CEILINGS = Ceilings(flops=1e9, bytes=1e9)


@pytest.fixture
def settings() -> runner.Settings:
    return runner.Settings(CEILINGS, repeats=3, sample_seconds=0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    """Makes a case whose sides return ones and note that they were called."""
    # A toy's functions are local, so no fresh process could call them.
    peaks = {"ours": 2 * 2**20, "peer": 8 * 2**20, "eager": 2**20}
    monkeypatch.setattr(runner, "peak_extra_bytes", lambda build, size, sides: {side: peaks[side] for side in sides})
    monkeypatch.setattr(command, "find_ceilings", lambda device, coarse: CEILINGS)

    def make(
        *,
        name: str = "toy",
        figure: Figure = Figure.FORWARD,
        bar: float | None = None,
        floor_bar: float | None = None,
        calls: list[str] | None = None,
        flops: float = 0,
        raises: Exception | None = None,
        device: str = "cpu",
        **values: float,
    ) -> Case:
        values = {"ours": 1.0, "peer": 1.0, **values}

        def side(label: str) -> Callable[[], dict[str, torch.Tensor]]:
            def call() -> dict[str, torch.Tensor]:
                if calls is not None:
                    calls.append(label)
                return {"output": torch.full((3,), values[label])}

            return call

        def build(size: dict[str, int]) -> Work:
            if raises is not None:
                raise raises
            truth = {"output": torch.ones(3, dtype=torch.float64)}
            sides = {label: side(label) for label in values}
            return Work(sides, lambda: dict.fromkeys(sides, truth), dict.fromkeys(sides, 1e-6), flops, 8)

        lengths = (8, 16) if figure is Figure.GROWTH else ()
        return Case(
            name, "a toy", "another toy", figure, build, {"n": 3}, {"n": 1}, bar, floor_bar, device, "n", lengths
        )

    return make
