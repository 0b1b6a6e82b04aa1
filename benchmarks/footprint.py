"""How much memory each side needs beyond its inputs."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.case import Size, Work

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
# glibc then maps every larger block separately and gives it back when it is freed, so resident memory is memory in use.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_CHILD = "from benchmarks.footprint import answer; answer()"


def peak_extra_bytes(build: Callable[[Size], Work], size: Size, sides: Sequence[str]) -> dict[str, int | None]:
    """Measure the peak of resident memory during one call of each side, beyond what was resident before it.

    This happens in a fresh process whose allocator keeps no freed blocks. The kernel's own high-water mark (``VmHWM``)
    is reset before the call and read after it, so it sees tensors, the results of the call, and the scratch space of
    FFT and GEMM libraries alike, which counting torch's allocations would not. One call before it is not measured, so
    thread pools and plans that stay are not counted. The resolution is a few hundred KiB.

    Args:
        build: Makes the work; a function of an importable module, as the fresh process calls it again.
        size: The size to build.
        sides: Which sides to call.

    Returns:
        Bytes by side, None where the system has no such mark: it needs Linux with a writable ``/proc/self/clear_refs``.

    Raises:
        RuntimeError: The fresh process failed; the message ends with its last line.
    """
    # Pickle travels from this process to its own child only.
    question = pickle.dumps((build, dict(size), list(sides), torch.get_num_threads()))
    environment = os.environ | _ALLOCATOR | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=question, capture_output=True, check=False, env=environment
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the process that measures memory failed: {lines[-1]}")
    found: dict[str, int | None] = json.loads(done.stdout)
    return found


def answer() -> None:
    """Measure what the parent process asks for on standard input, and write the figures to standard output."""
    build, size, sides, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    work = build(size)
    sys.stdout.write(json.dumps({side: _peak(work.sides[side]) for side in sides}))


def _peak(call: Callable[[], object]) -> int | None:
    call()
    gc.collect()
    try:
        _CLEAR_REFS.write_text(_RESET_HIGH_WATER)
        before = _status_bytes("VmRSS")
    except OSError:
        return None
    held = call()
    peak = _status_bytes("VmHWM")
    del held
    return max(0, peak - before)


def _status_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(match.group(1)) * 1024
