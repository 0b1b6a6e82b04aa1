"""The command ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.case import Case, UnknownCaseError, all_cases, select
from benchmarks.machine import busy_warning, describe, environment, find_ceilings
from benchmarks.runner import Outcome, Settings, device_is_lost, run

_REPEATS, _QUICK_REPEATS = {"cpu": 10, "cuda": 20}, 3
# A rented device goes back after ten minutes.
_SECONDS = {"cpu": float("inf"), "cuda": 540.0}
_CASE_SECONDS = {"cpu": float("inf"), "cuda": 6.0}
# Kept for writing results, and for a case that compiles longer than it measures.
_RESERVE_SECONDS = 45.0
_OK, _FAILED, _REFUSED, _INTERRUPTED = 0, 1, 2, 130

_EPILOG = """\
examples:
  python -m benchmarks --list
  python -m benchmarks --only 's4d-*' --quick
  python -m benchmarks --only growth
  python -m benchmarks --json                         everything, kept as benchmarks/results/MACHINE.json
  python -m benchmarks --avx2 --json avx2.json        as on a processor without AVX-512
  python -m benchmarks --device cuda                  the Triton kernels on a GPU, nine minutes at most
  python -m benchmarks --device cuda --resume         what the last run did not come to
  python -m benchmarks --interpret                    the same cases at tiny sizes in Triton's interpreter, on the CPU

All sides are first compared with float64. If one is wrong, its error is printed instead of a ratio and the exit status
is 1. A missed bar is reported and does not change the status: on a busy machine it may say nothing about the code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run cases; 0 if all that ran were right, 1 if not, 2 for a request that cannot be served, 130 if stopped."""
    begin = time.monotonic()
    argv = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_args(argv)
    kind = options.device or ("cuda" if options.interpret or options.tune else "cpu")
    try:
        if (options.interpret or options.tune) and kind == "cpu":
            raise ValueError("--interpret and --tune are for --device cuda; give no --device, or that one")
        listed = [case for case in all_cases() if case.device == kind or (options.list and not options.device)]
        cases = select(options.only, listed)
        if options.list:
            results.show_list(cases)
            return _OK
        if kind == "cuda" and not options.interpret and not torch.cuda.is_available():
            raise ValueError("this needs a GPU that torch can use; --interpret tries it on a CPU, at tiny sizes")
        if options.threads:
            torch.set_num_threads(options.threads)
        return _tune(options) if options.tune else _Session(options, kind, argv, begin).run(cases)
    except (UnknownCaseError, ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return _REFUSED


class _Session:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, kind: str, argv: Sequence[str], begin: float) -> None:
        self.argv, self.kind, self.interpret = argv, kind, options.interpret
        self.device = "cpu" if options.interpret else kind
        self.seconds = _SECONDS[kind] if options.seconds is None else options.seconds
        self.end = begin + self.seconds
        self.path = _path(options, self.device)
        self.warning = busy_warning()  # before measuring, so that the load is that of others
        ceilings = find_ceilings(self.device, coarse=options.interpret)
        repeats = options.repeats or (1 if options.interpret else _QUICK_REPEATS if options.quick else _REPEATS[kind])
        self.settings = Settings(
            ceilings,
            self.device,
            repeats,
            memory=not options.quick,
            case_seconds=_CASE_SECONDS[kind],
            on_step=self._tell,
        )
        self.document: dict[str, Any] = {
            "format": results.FORMAT_VERSION,
            "environment": environment(self.device, ceilings),
            "interpreted": options.interpret,
            "settings": {"repeats": repeats, "quick": options.quick, "only": options.only},
        }
        resumed = options.resume and self.path is not None and self.path.is_file()
        self.records = results.kept(self.path, self.document) if resumed and self.path is not None else []
        self.position = ""
        try:
            self._write(self.records)
        except OSError as error:
            why = f"--json {self.path} cannot be written: {error.strerror or error}; nothing was measured"
            raise OSError(why) from error

    def run(self, cases: Sequence[Case]) -> int:
        """Run what is not done yet, and write after every case."""
        done = {record["name"] for record in self.records}
        stopped = False
        for index, case in enumerate(cases):
            if case.name in done:
                continue
            self.position = f"[{index + 1}/{len(cases)}] {case.name}"
            try:
                self.records.append(self._one(case))
            except KeyboardInterrupt:
                stopped = True
                sys.stderr.write(f"\nbenchmarks: interrupted after {len(self.records)} of {len(cases)} cases\n")
                break
            self._write(self.records)
        return self._finish(stopped)

    def _one(self, case: Case) -> Mapping[str, Any]:
        size = case.tiny if self.interpret else case.size
        if self.end - time.monotonic() < min(_RESERVE_SECONDS, self.seconds / 4):
            return Outcome(case, size, skipped=f"the {self.seconds:.0f} s were over").record()
        # Written first, so that a case that ends the process is neither lost nor tried again.
        self._write([*self.records, Outcome(case, size, failure="it ended the process").record()])
        sys.stderr.write(f"{self.position} ...\n")
        outcome = run(case, self.settings, size)
        record = outcome.record()
        self._tell("")
        sys.stderr.write(f"{self.position}: {results.summary(record)}\n")
        if outcome.failure and device_is_lost(self.device):
            self._write([*self.records, record])
            sys.stderr.write("the device was lost; the other cases go on in a new process\n")
            again = [*self.argv, "--resume", "--seconds", str(self.end - time.monotonic())]
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *again])
        return record

    def _finish(self, stopped: bool) -> int:
        self._write(self.records)
        results.show(self.records)
        if self.warning is not None:
            sys.stderr.write(f"benchmarks: {self.warning}\n")
        if self.path is not None:
            sys.stderr.write(f"written to {self.path}\n")
        if stopped:
            return _INTERRUPTED
        return _FAILED if any(record["failure"] for record in self.records) else _OK

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        results.write(self.path, {**self.document, "cases": list(records)})

    def _tell(self, step: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{self.position}: {step}" if step else "\r\033[K")
            sys.stderr.flush()


def _tune(options: argparse.Namespace) -> int:
    from benchmarks.tiles import record, tune

    device = "cpu" if options.interpret else "cuda"
    best = tune(device)
    results.write(_path(options, device, "tiles of "), {"device": describe(device), "tiles": record(best)})
    return _OK if best else _FAILED


def _path(options: argparse.Namespace, device: str, what: str = "") -> Path | None:
    """Where results go: nowhere unless asked for, except on a GPU, which may not be there a second time."""
    if options.json not in {None, ""}:
        return Path(options.json)
    wanted = options.json is not None or options.resume or device == "cuda"
    return results.default_path(what + describe(device)) if wanted else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures milkweed against the usual way: ratios of medians, taken in turn in one process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="run the cases with this name, shell pattern or part of a name; may be given several times",
    )
    add("--list", action="store_true", help="list the cases and stop")
    add("--device", choices=["cpu", "cuda"], help="whose cases to run (default cpu; for --list, both)")
    add("--quick", action="store_true", help="three samples, and memory only where the case is about memory")
    add("--repeats", type=_positive, metavar="N", help="samples of each side (default 10, and 20 on a GPU)")
    add("--threads", type=_positive, metavar="N", help="threads for torch (default: its own choice)")
    add(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="keep what was measured; without FILE, and always on a GPU, in benchmarks/results/MACHINE.json",
    )
    add("--resume", action="store_true", help="keep the cases that this file holds already, and run the others")
    add("--seconds", type=float, metavar="S", help="for all cases; what is left then is skipped (on a GPU: 540)")
    add("--avx2", action="store_true", help="run as on a processor without AVX-512")
    add(
        "--interpret", action="store_true", help="run the GPU's cases at tiny sizes in Triton's interpreter, on the CPU"
    )
    add(
        "--tune", action="store_true", help="time tiles of matrix products on a GPU instead; prints entries to check in"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
