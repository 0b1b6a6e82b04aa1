"""Every Triton kernel compiles for real GPUs, fits on them and uses their matrix units; no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ops.triton_cases import CASES
from tests.ops.triton_offline import SHARED, Compiled

pytest.importorskip("triton")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("arch", SHARED)
def test_compiles_for(arch):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.ops.triton_offline", str(arch)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout)
    assert results.keys() == CASES.keys()
    problems = []
    for name, case in CASES.items():
        compiled = [Compiled(**kernel) for kernel in results[name]["kernels"]]
        problems += [f"{name}: launches nothing"] if not compiled else []
        for kernel in compiled:
            problems += [f"{name}: {p}" for p in kernel.problems(matrix=case.matrix, spills=case.spills)]
    assert not problems, "\n".join(problems)
