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
def test_compiles_for(arch, pytestconfig):
    every = 1 if pytestconfig.getoption("all_cases") else 8
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.ops.triton_offline", str(arch), "", str(every)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout)
    assert len(results) >= len(CASES) // every > 0
    problems = []
    for name, result in results.items():
        case = CASES[name]
        compiled = [Compiled(**kernel) for kernel in result["kernels"]]
        problems += [f"{name}: launches nothing"] if not compiled else []
        for kernel in compiled:
            problems += [f"{name}: {p}" for p in kernel.problems(matrix=case.matrix, spills=case.spills)]
    assert not problems, "\n".join(problems)
