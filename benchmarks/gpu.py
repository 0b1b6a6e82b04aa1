"""Measures the Triton backends on a GPU against torch and the plain formulas: ``python benchmarks/gpu.py``.

Every kernel is first compared with float64, then both sides are timed in turn with CUDA events. The table and the JSON
file also say what fraction of the floor was reached: the time that the device's memory, or its matrix units, need at
least. ``--tune`` measures tiles; ``--interpret`` runs tiny sizes on a CPU in Triton's interpreter, to try the script.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Triton decides when a kernel is defined, so before anything imports one.
os.environ["TRITON_INTERPRET"] = "1" if "--interpret" in sys.argv else "0"
# Works in a checkout that is not installed, too.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import torch
from gpu_cases import Case, NotHereError, Work, all_cases, device, draw
from gpu_safety_cases import safety_cases
from torch import Tensor

import milkweed as mw
from milkweed._files import atomic_write
from milkweed.benchmarks.environment import describe_environment
from milkweed.benchmarks.registry import Size, UnknownCaseError, select
from milkweed.benchmarks.run import relative_errors

FORMAT_VERSION = 1
_BUDGET_SECONDS = 540.0
# Kept for writing results, and for a case that compiles longer than it measures.
_RESERVE_SECONDS = 45.0
_REPEATS, _SAMPLE_SECONDS, _CASE_SECONDS = 20, 0.02, 6.0
_FAILED, _REFUSED = 1, 2


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a device can do at most, by its data sheet.

    Attributes:
        bandwidth: Bytes a second between memory and chip.
        operations: Dense bfloat16 operations a second; None if unknown.
    """

    bandwidth: float
    operations: float | None


# By the start of the device's name; longer names first.
_PEAKS = {
    "NVIDIA H200": Peaks(4.8e12, 989e12),
    "NVIDIA H100 NVL": Peaks(3.9e12, 835e12),
    "NVIDIA H100 PCIe": Peaks(2.0e12, 756e12),
    "NVIDIA H100": Peaks(3.35e12, 989e12),
    "NVIDIA A100-SXM4-80GB": Peaks(2.039e12, 312e12),
    "NVIDIA A100 80GB PCIe": Peaks(1.935e12, 312e12),
    "NVIDIA A100": Peaks(1.555e12, 312e12),
}


@dataclasses.dataclass
class Side:
    """What came out of one side."""

    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    calls: int = 1
    failure: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of a call; None where there is no figure."""
        return None if self.failure or not self.seconds else statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "median_s": self.median,
            "samples_s": self.seconds,
            "calls_per_sample": self.calls,
            "errors": {output: x if math.isfinite(x) else str(x) for output, x in self.errors.items()},
            "failure": self.failure or None,
        }


@dataclasses.dataclass
class Result:
    """What came out of one case; ``skipped`` says why it did not run."""

    case: Case
    size: Size
    sides: dict[str, Side] = dataclasses.field(default_factory=dict)
    failure: str = ""
    skipped: str = ""
    floor: float | None = None
    bytes: int = 0
    operations: int = 0

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        medians = {name: side.median for name, side in self.sides.items()}
        ours, theirs = medians.get("triton"), medians.get("baseline")

        def ratio(side: str) -> float | None:
            median = medians.get(side)
            return None if median is None or theirs is None else theirs / median

        return {
            "name": self.case.name,
            "description": self.case.description,
            "against": self.case.against,
            "size": dict(self.size),
            "reduced": dict(self.size) not in (dict(self.case.size), dict(self.case.tiny)),
            "goal": self.case.goal,
            "ratio": ratio("triton"),
            "ratio_of_eager": ratio("eager"),
            "bytes": self.bytes,
            "operations": self.operations,
            "floor_s": self.floor,
            "fraction_of_floor": None if ours is None or self.floor is None else self.floor / ours,
            "failure": self.failure or None,
            "skipped": self.skipped or None,
            "sides": {name: side.record() for name, side in self.sides.items()},
        }


# Measuring --------------------------------------------------------------------------------------------------------


def _seconds(call: Callable[[], object], calls: int) -> float:
    if device().type == "cpu":
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


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _check(name: str, work: Work) -> Side:
    """Run a side once and compare it with float64."""
    side = Side()
    found = {output: x.detach().clone() for output, x in work.part(work.sides[name]()).items()}
    if name == "triton":
        # Nothing in our kernels depends on the order in which programs run.
        again = work.part(work.sides[name]())
        differing = [output for output, x in found.items() if not _same(x, again[output])]
        if differing:
            side.failure = f"not the same when run again: {', '.join(differing)}"
            return side
    exact = work.exact(name)
    if exact:
        side.errors = relative_errors(found, exact)
        tolerance = work.tolerances[name]
        # Written so that NaN fails too.
        wrong = [f"{output} is off by {error:.1e}" for output, error in side.errors.items() if not error <= tolerance]
        if wrong:
            side.failure = f"wrong: {', '.join(wrong)}; allowed is {tolerance:.0e}"
    return side


def _time_in_turn(work: Work, sides: Mapping[str, Side], repeats: int) -> None:
    """Time every side that is right, one after the other, again and again."""
    right = {name: side for name, side in sides.items() if not side.failure}
    for name, side in right.items():
        once = _seconds(work.sides[name], 1)
        side.calls = max(1, min(100, round(_SAMPLE_SECONDS / max(once, 1e-6))))
    end = time.monotonic() + _CASE_SECONDS
    for done in range(repeats):
        if done >= 3 and time.monotonic() > end:
            return
        for name, side in right.items():
            side.seconds.append(_seconds(work.sides[name], side.calls))


def _measure(case: Case, size: Size, peaks: Peaks, repeats: int) -> Result:
    result = Result(case, size)
    torch.manual_seed(0)
    work = case.build(size)
    result.bytes, result.operations = work.bytes, work.operations
    times = [work.bytes / peaks.bandwidth, work.operations / peaks.operations if peaks.operations else 0.0]
    result.floor = max(times) or None
    for name in work.sides:
        try:
            result.sides[name] = _check(name, work)
        except torch.OutOfMemoryError:
            if name != "eager":
                raise
            result.sides[name] = Side(failure="out of memory")
        except Exception as error:
            # What Triton's compiler says runs over pages.
            result.sides[name] = Side(failure=f"{type(error).__name__}: {str(error)[:500]}")
    _time_in_turn(work, result.sides, repeats)
    broken = [f"{name}: {side.failure}" for name, side in result.sides.items() if side.failure and name != "eager"]
    result.failure = "; ".join(broken)
    return result


def _device_is_lost() -> bool:
    """Whether an error has left the device unusable for this process, as a wrong address does."""
    if device().type == "cpu":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _measure_what_fits(case: Case, size: Size, peaks: Peaks, repeats: int) -> Result:
    """Halve the size until it fits in memory; whatever else goes wrong becomes the result."""
    while True:
        try:
            return _measure(case, size, peaks, repeats)
        except torch.OutOfMemoryError:
            if size[case.shrinks] < 2:
                return Result(case, size, failure=f"out of memory at {case.shrinks} 1")
            size = {**size, case.shrinks: size[case.shrinks] // 2}
        except (ModuleNotFoundError, NotHereError) as error:
            return Result(case, size, skipped=str(error))
        except Exception as error:
            return Result(case, size, failure=f"{type(error).__name__}: {str(error)[:500]}")
        finally:
            gc.collect()
            with contextlib.suppress(RuntimeError):  # of a lost device
                torch.cuda.empty_cache()


def _peaks() -> tuple[Peaks, float | None]:
    """The device's peaks, and the bandwidth of a copy as measured."""
    if device().type == "cpu":
        return Peaks(1e10, None), None
    name = torch.cuda.get_device_name()
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / min(_seconds(lambda: target.copy_(source), 5) for _ in range(4))
    return next((peaks for start, peaks in _PEAKS.items() if name.startswith(start)), Peaks(copied, None)), copied


# Reporting --------------------------------------------------------------------------------------------------------


def _milliseconds(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "-"
    return "failed" if side["failure"] else "-" if side["median_s"] is None else f"{side['median_s'] * 1e3:.3g}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _verdict(goal: float | None, ratio: float | None) -> str:
    if goal is None or device().type == "cpu":
        return "-"
    return f">= {goal:.3g}x" + ("" if ratio is None else " met" if ratio >= goal else " missed")


def _row(record: Mapping[str, Any]) -> list[str]:
    sides, ratio = record["sides"], record["ratio"]
    errors = [float(error) for error in sides.get("triton", {}).get("errors", {}).values()]
    worst = max(errors, key=lambda error: (math.isnan(error), error), default=None)
    return [
        record["name"],
        *(_milliseconds(sides.get(name)) for name in ("triton", "eager", "baseline")),
        "skipped" if record["skipped"] else "failed" if record["failure"] else _times(ratio),
        _times(record["ratio_of_eager"]),
        _verdict(record["goal"], ratio),
        "-" if record["fraction_of_floor"] is None else f"{record['fraction_of_floor']:.0%}",
        "-" if worst is None else f"{worst:.0e}",
    ]


def _show(records: Sequence[Mapping[str, Any]]) -> None:
    heading = ["case", "triton ms", "eager ms", "baseline ms", "ratio", "of eager", "goal", "of floor", "error"]
    rows = [_row(record) for record in records]
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
        for row in [heading, *rows]:
            sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
    else:
        table = Table(*heading, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console = Console()
        (console if console.is_terminal else Console(width=160)).print(table)
    for record in records:
        if record["failure"] or record["skipped"]:
            sys.stdout.write(f"{record['name']}: {record['failure'] or record['skipped']}\n")
        if record["reduced"]:
            sys.stdout.write(f"{record['name']}: measured at {record['size']}, which fits in memory\n")


# The command ------------------------------------------------------------------------------------------------------


def _tune(out: Path | None) -> int:
    """Time the tiles of block-diagonal products on Monarch factors, and print what to check in."""
    from milkweed.ops import _triton_configs as configs

    on_gpu = device().type == "cuda"
    tokens, features, nblocks, calls = (8192, 4096, 4, 10) if on_gpu else (16, 64, 4, 1)
    best = {}
    for kernel in ("multiply", "sum_outer"):
        x = draw(tokens, features, dtype=torch.bfloat16)
        weight = draw(nblocks, features // nblocks, features // nblocks, dtype=torch.bfloat16, gradient=True)

        def call(training: bool = kernel == "sum_outer", x: Tensor = x, weight: Tensor = weight) -> object:
            y = mw.ops.block_diagonal_mm(x, weight, backend="triton")
            return torch.autograd.grad(y, weight, x) if training else y

        seconds = {}
        for tile in configs.candidates(kernel):
            with configs.forced_tile(kernel, tile):
                try:
                    seconds[tile] = min(_seconds(call, calls) for _ in range(calls + 1))
                except Exception as error:
                    sys.stdout.write(f"{kernel} {tile}: {type(error).__name__}: {str(error)[:100]}\n")
                    continue
            sys.stdout.write(f"{kernel} {tile}: {seconds[tile] * 1e3:.3f} ms\n")
        if seconds:
            best[kernel] = min(seconds, key=seconds.__getitem__)
    name = torch.cuda.get_device_name() if on_gpu else "interpreter"
    entries = "\n".join(f'        "{kernel}": {tile},' for kernel, tile in best.items())
    sys.stdout.write(f'Entry for _MEASURED in _triton_configs.py:\n    "{name}": {{\n{entries}\n    }},\n')
    _write(out, {"device": name, "tiles": {kernel: dataclasses.asdict(tile) for kernel, tile in best.items()}})
    return 0 if best else _FAILED


def _write(path: Path | None, content: Mapping[str, object]) -> None:
    if path is None:
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _kept(path: Path, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases of a file that another run of this script has begun, on the same device."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        records = list(found["cases"])
        for record in records:
            _row(record)
        there = found["format"], found["interpreted"], found["environment"].get("gpu")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of this script; give --out another file, or no --resume") from error
    here = document["format"], document["interpreted"], document["environment"].get("gpu")
    if there != here:
        raise ValueError(
            f"{path} was measured in another way (format, interpreted, GPU: {there}; now {here}); give another --out"
        )
    return records


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cases by name or shell pattern")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="where results go (default benchmarks/results/DEVICE.json)"
    )
    parser.add_argument(
        "--seconds", type=float, default=_BUDGET_SECONDS, help="for all cases; what is left then is skipped"
    )
    parser.add_argument("--resume", action="store_true", help="keep the cases that --out holds, and run the others")
    parser.add_argument("--tune", action="store_true", help="measure tiles instead, and print entries to check in")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes on the CPU, to try this script")
    return parser


def _default_out() -> Path | None:
    if device().type == "cpu":
        return None
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return Path(__file__).parent / "results" / f"{name}.json"


def _environment(peaks: Peaks, copied: float | None) -> dict[str, object]:
    found = describe_environment()
    with contextlib.suppress(ModuleNotFoundError):
        import triton

        found["triton"] = triton.__version__
    if device().type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
            "copy_bandwidth": copied,
        }
    return found | {"peaks": dataclasses.asdict(peaks)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit status: 0 if every case that ran was right, 1 if one failed, 2 for a request that cannot be served.
    """
    begin = time.monotonic()
    options = _parser().parse_args(argv)
    try:
        cases = select(options.only, [*safety_cases(), *all_cases()])
    except UnknownCaseError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    if options.list:
        sys.stdout.writelines(f"{case.name}: {case.description}; against {case.against}\n" for case in cases)
        return 0
    if not options.interpret and not torch.cuda.is_available():
        sys.stderr.write("this needs a GPU that torch can use; --interpret tries the script on a CPU, at tiny sizes\n")
        return _REFUSED
    out = options.out or _default_out()
    if options.tune:
        return _tune(options.out)
    peaks, copied = _peaks()
    document = {"format": FORMAT_VERSION, "environment": _environment(peaks, copied), "interpreted": options.interpret}
    try:
        records = _kept(out, document) if options.resume and out and out.is_file() else []
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    for case in cases:
        if case.name in {record["name"] for record in records}:
            continue
        size = case.tiny if options.interpret else case.size
        left = options.seconds - (time.monotonic() - begin)
        if left < min(_RESERVE_SECONDS, options.seconds / 4):
            result = Result(case, size, skipped=f"the {options.seconds:.0f} s were over")
        else:
            sys.stderr.write(f"{case.name} ...\n")
            # Written first, so that a case that ends the process is neither lost nor tried again.
            started = Result(case, size, failure="it ended the process")
            _write(out, {**document, "cases": [*records, started.record()]})
            result = _measure_what_fits(case, size, peaks, 1 if options.interpret else _REPEATS)
        records.append(result.record())
        _write(out, {**document, "cases": records})
        if result.failure and _device_is_lost():
            sys.stderr.write("the device was lost; the other cases go on in a new process\n")
            left = options.seconds - (time.monotonic() - begin)
            again = [*(argv if argv is not None else sys.argv[1:]), "--resume", "--seconds", str(left)]
            os.execv(sys.executable, [sys.executable, __file__, *again])
    _show(records)
    if out is not None:
        sys.stderr.write(f"written to {out}\n")
    return _FAILED if any(record["failure"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
