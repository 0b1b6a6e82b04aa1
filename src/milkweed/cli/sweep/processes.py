"""Trainings in processes of their own, so many at a time; one that fails leaves the others alone."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from milkweed.cli.sweep.grid import Combination

PAUSE = 0.2  # seconds between looks at the processes
PATIENCE = (20.0, 20.0)  # seconds until a process that was interrupted is terminated, and then killed
_TAIL = 4096
_EPOCH = re.compile(r"^epoch (\d+(?:/\d+)?)  (.*)$", re.MULTILINE)


@dataclass
class Child:
    """A training that runs, and what became of it."""

    combination: Combination
    process: subprocess.Popen
    log: Path
    slot: int
    begin: int  # of what this process wrote in the log
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.started

    def progress(self) -> tuple[str, str]:
        """The last epoch that it reported, e.g. 3/20, and the metrics; empty before the first."""
        found = _EPOCH.findall(self.tail())
        return found[-1] if found else ("", "")

    def error(self) -> str:
        """Why it failed, in its own words."""
        code, text = self.process.returncode, self.tail()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"ended by {name}" + ("; the memory may have been too small" if name == "SIGKILL" else "")
        block = text.rpartition("error: ")[2] if "error: " in text else ""
        lines = [line.strip() for line in (block or text).splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("--debug or ")]
        return " ".join(lines if block else lines[-1:]) or f"exit status {code}"

    def tail(self) -> str:
        """The end of what it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(self.begin, self.log.stat().st_size - _TAIL))
            return file.read().decode(errors="replace")


def run_all(
    waiting: Sequence[Combination],
    jobs: int,
    start: Callable[[Combination, int], Child],
    look: Callable[[list[Child], list[Child]], None],
) -> None:
    """Run all, at most so many at a time; `look` gets those that run and those that just ended.

    Whatever ends this, Ctrl-C too, ends the processes: each is interrupted, so that it can say what it has saved.
    """
    left, running = list(waiting), []
    try:
        with terminated_as_interrupted():
            while left or running:
                free = sorted(set(range(jobs)) - {child.slot for child in running})
                for slot in free[: len(left)]:
                    running.append(start(left.pop(0), slot))
                ended = [child for child in running if child.process.poll() is not None]
                running = [child for child in running if child not in ended]
                look(running, ended)
                if not ended:
                    time.sleep(PAUSE)
    finally:
        stop(running)


def stop(children: Sequence[Child]) -> None:
    """End processes: ask, then insist; a second Ctrl-C insists at once."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    living = [child for child in children if child.process.poll() is None]
    for sent, patience in zip(signals, (*PATIENCE, None), strict=True):
        for child in living:
            _send(child, sent)
        try:
            living = _wait(living, patience)
        except KeyboardInterrupt:
            continue
    for child in living:
        child.process.wait()


def _send(child: Child, sent: signal.Signals) -> None:
    """Signal a process; its own children get the last signal too."""
    try:
        if sent == signal.SIGKILL:
            os.killpg(child.process.pid, sent)
        else:
            child.process.send_signal(sent)
    except ProcessLookupError:
        pass


def _wait(children: list[Child], patience: float | None) -> list[Child]:
    """Wait until all have ended or patience has; those that live are returned."""
    end = time.monotonic() + (patience or 0)
    while children and time.monotonic() < end:
        time.sleep(0.05)
        children = [child for child in children if child.process.poll() is None]
    return children


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: without that the processes would go on alone."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_process(command: list[str], log: Path, environment: dict[str, str], combination: Combination, slot: int):
    """Start a process that writes into a log; Ctrl-C in the terminal reaches it through this one only."""
    with log.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    return Child(combination, process, log, slot, begin)


def shares(jobs: int, slot: int, gpus: int) -> dict[str, str]:
    """Variables that give each process its share of the cores, and one of several GPUs."""
    found = {}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    if gpus > 1 and jobs > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [each for each in seen.split(",") if each] or [str(number) for number in range(gpus)]
        found["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    return found
