"""How long ``import milkweed`` takes beyond torch's own import."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.case import Case, Figure, Outputs, Size, Work, compare, register


def _import(statement: str) -> Outputs:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True, env=environment)
    return {}


def build(size: Size) -> Work:
    """The two imports, each in a fresh interpreter. There is nothing to compare, but a failing import is an error."""
    return compare(lambda: _import("import torch, milkweed"), lambda: _import("import torch"), dict, 0.0)


register(
    Case(
        "import-time",
        "import milkweed after torch, in fresh interpreters",
        "import torch alone",
        Figure.EXTRA_SECONDS,
        build,
        size={},
        tiny={},
        bar=1.0,
    )
)
