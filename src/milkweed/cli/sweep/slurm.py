"""A sweep as an array of SLURM's: a script that trains one run for each task."""

import os
import shlex
import sys
from pathlib import Path

from milkweed._files import atomic_write
from milkweed._suggest import UsageError
from milkweed.cli.sweep.grid import Combination

MARK = "# Written by milkweed sweep: "


def check_script(path: Path) -> None:
    """Refuse to write where something else is."""
    if path.is_dir():
        raise UsageError(f"--slurm {path} is a folder; choose a file, e.g. --slurm {path / 'sweep.sh'}")
    if path.exists() and MARK.encode() not in path.read_bytes()[:500]:
        raise UsageError(f"--slurm {path} exists, and milkweed did not write it; choose another file")


def write_script(path: Path, command: list[str], folder: Path, runs: list[Combination]) -> None:
    """Write the script; `command` is what all runs have in common."""
    name = folder.name
    cases = [
        f"{number}) run=({shlex.join(['--name', each.name, *each.arguments])}) ;;" for number, each in enumerate(runs)
    ]
    lines = [
        "#!/bin/bash",
        f"{MARK}{len(runs)} runs, one for each task. `sbatch {shlex.quote(str(path))}` starts them.",
        "# Partition, time, memory and GPUs are your cluster's: give them to sbatch, or add #SBATCH lines here.",
        "# A task that was stopped goes on from its last checkpoint: submit it again, e.g. sbatch --array=0 FILE.",
        f"# When all are done: milkweed compare {shlex.quote(str(folder))}",
        f"#SBATCH --job-name={shlex.quote(name)}",
        f"#SBATCH --array=0-{len(runs) - 1}",
        "#SBATCH --ntasks=1",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "# Two minutes before its time is over a run saves a checkpoint and ends.",
        "#SBATCH --signal=B:TERM@120",
        "",
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        '*) echo "there is no run for task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;',
        "esac",
        f'exec {shlex.join([sys.executable, *command])} "${{run[@]}}"',
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | 0o111)
