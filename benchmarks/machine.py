"""The machine that a measurement is taken on: what it is, how busy it is, and what it can do at most."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from milkweed import __version__

_REPORTED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_TOLERATED_LOAD = 0.5
_TRIALS = 8


@dataclass(frozen=True)
class Ceilings:
    """What the device did at best, a second.

    Attributes:
        flops: In a product of large matrices: float32 on CPUs, bfloat16 on GPUs.
        bytes: Read and written by a copy of a large tensor.
    """

    flops: float
    bytes: float

    def floor(self, flops: float, moved: int) -> float | None:
        """The least seconds that so much work can take; None where the work is not counted."""
        return max(flops / self.flops, moved / self.bytes) or None


def find_ceilings(device: str, *, coarse: bool = False) -> Ceilings:
    """Multiply and copy, and take the best of several times."""
    on_gpu = device == "cuda"
    n, entries = (256, 2**20) if coarse else (8192, 2**28) if on_gpu else (2048, 2**26)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32) for _ in range(2))
    source = torch.zeros(entries, device=device)
    target = torch.zeros_like(source)
    products = min(_best(product, device) for product in _products(a, b))
    return Ceilings(2 * n**3 / products, 2 * source.nbytes / _best(lambda: target.copy_(source), device))


def _products(a: Tensor, b: Tensor) -> list[Callable[[], Tensor]]:
    if a.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        # Of MKL and oneDNN, either is the faster one on some processors.
        return [lambda: a @ b, lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")]
    return [lambda: a @ b]


def _best(call: Callable[[], object], device: str) -> float:
    call()
    return min(seconds(call, 1, device) for _ in range(_TRIALS))


def seconds(call: Callable[[], object], calls: int, device: str) -> float:
    """Mean time of one call."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def describe(device: str) -> str:
    """Name what decides about times, in one line: results are comparable where it is the same."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{_processor()[0]}, {capability}, {threads} thread{'s' * (threads != 1)}"


def environment(device: str, ceilings: Ceilings) -> dict[str, object]:
    """Collect what is needed to judge a measurement later."""
    model, flags = _processor()
    found: dict[str, object] = {
        "machine": describe(device),
        "ceilings": asdict(ceilings),
        "milkweed": __version__,
        "git": _git_state(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu": model,
        "cpu_count": os.cpu_count(),
        "cpu_flags": {flag: flag in flags for flag in _REPORTED_FLAGS},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with contextlib.suppress(ModuleNotFoundError):
        import triton

        found["triton"] = triton.__version__
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def busy_warning() -> str | None:
    """One sentence if torch's threads and the load of the last minute do not fit on the processor together."""
    if not hasattr(os, "getloadavg"):
        return None
    load, threads, cores = os.getloadavg()[0], torch.get_num_threads(), os.cpu_count() or 1
    if load + threads <= cores + _TOLERATED_LOAD:
        return None
    return (
        f"the machine was busy before this began: load {load:.1f} in the last minute, and now {threads} "
        f"thread{'s' * (threads != 1)} on {cores} cores; repeat when it is idle, or use fewer --threads"
    )


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    name = model.group(1).strip() if model else platform.processor() or platform.machine()
    return name, set(flags.group(1).split()) if flags else set()


def _git_state() -> dict[str, object] | None:
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__)

    def ask(*arguments: str) -> str | None:
        done = subprocess.run(
            [git, "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else None

    # A copy of this folder inside somebody else's repository must not report that repository's commit.
    if ask("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}
