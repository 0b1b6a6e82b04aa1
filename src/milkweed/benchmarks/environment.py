"""The machine and the software that a measurement was taken on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from milkweed._version import __version__

_REPORTED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_TOLERATED_LOAD = 0.5


def describe_environment() -> dict[str, object]:
    """Collect what is needed to judge a measurement later.

    Returns:
        Versions, threads, processor with its vector extensions, the load of the last minute, date in UTC and, in a
        source checkout, the git commit.
    """
    model, flags = _processor()
    return {
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


def busy_warning() -> str | None:
    """Judge whether other processes will disturb a measurement.

    Returns:
        One sentence if torch's threads and the load of the last minute do not fit on the processor together.
    """
    if not hasattr(os, "getloadavg"):
        return None
    load, threads, cores = os.getloadavg()[0], torch.get_num_threads(), os.cpu_count() or 1
    if load + threads <= cores + _TOLERATED_LOAD:
        return None
    ours = f"{threads} thread{'s' * (threads != 1)}"
    return (
        f"the machine was busy before this began: load {load:.1f} in the last minute, and now {ours} on {cores} cores; "
        "repeat when it is idle, or use fewer --threads"
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

    # A wheel installed inside somebody else's repository must not report that repository's commit.
    if ask("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}
