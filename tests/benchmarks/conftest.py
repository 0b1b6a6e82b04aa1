from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from milkweed.benchmarks import Case, Figure, Pair, run


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    """Makes a case whose sides return ones and note that they were called."""
    # A toy's functions are local, so no fresh process could call them.
    monkeypatch.setattr(run, "peak_extra_bytes", lambda build, size: (2 * 2**20, 8 * 2**20))

    def make(
        *,
        name: str = "toy",
        figure: Figure = Figure.FORWARD,
        bar: float | None = None,
        ideal: float | None = None,
        ours: float = 1.0,
        baseline: float = 1.0,
        calls: list[str] | None = None,
    ) -> Case:
        def side(label: str, value: float) -> Callable[[], dict[str, torch.Tensor]]:
            def call() -> dict[str, torch.Tensor]:
                if calls is not None:
                    calls.append(label)
                return {"output": torch.full((3,), value)}

            return call

        def build(size: dict[str, int]) -> Pair:
            reference = {"output": torch.ones(3, dtype=torch.float64)}
            return Pair(side("ours", ours), side("baseline", baseline), lambda: reference, tolerance=1e-6)

        return Case(name, "a toy", "another toy", figure, build, {"n": 3}, {"n": 1}, bar, ideal)

    return make
