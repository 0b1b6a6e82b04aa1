"""How long ``import milkweed`` takes beyond torch's own import."""

from __future__ import annotations

import subprocess
import sys

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register


def _import(statement: str) -> Outputs:
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
    return {}


def build(size: Size) -> Pair:
    """Make the two imports, each in a fresh interpreter.

    Args:
        size: Empty.

    Returns:
        The pair. There is nothing to compare, but an import that fails is an error.
    """
    return Pair(
        ours=lambda: _import("import torch, milkweed"),
        baseline=lambda: _import("import torch"),
        reference=dict,
        tolerance=0.0,
    )


register(
    Case(
        name="import-time",
        description="import milkweed after torch, in fresh interpreters",
        against="import torch alone",
        figure=Figure.EXTRA_SECONDS,
        build=build,
        size={},
        tiny={},
        bar=1.0,
    )
)
