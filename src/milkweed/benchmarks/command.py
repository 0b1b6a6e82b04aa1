"""``milkweed bench``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from milkweed.benchmarks.environment import busy_warning, describe_environment
from milkweed.benchmarks.growth import Growth, GrowthMeasurement, all_growths, growth_table, measure_growth
from milkweed.benchmarks.registry import Case, UnknownCaseError, all_cases, select
from milkweed.benchmarks.report import case_table, document, result_table, write_document
from milkweed.benchmarks.run import Measurement, measure

_DEFAULT_REPEATS = 10
_QUICK_REPEATS = 3
_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130
_WIDTH_WITHOUT_TERMINAL = 200

_EPILOG = """\
examples:
  milkweed bench --list
  milkweed bench --only 's4d-*' --quick
  milkweed bench --out benchmarks/results/laptop.json

Both sides are first compared with float64. If one is wrong, its error is printed instead of a ratio and the exit status
is 1. A missed bar is reported and does not change the status: on a busy machine it may say nothing about the code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmark cases and shows how milkweed compares with the usual way.

    Args:
        argv: The arguments after ``milkweed bench``; those of the process by default.

    Returns:
        The exit status: 0 when every check passed, 1 when one failed, 2 for a request that cannot be served, 130 after
        an interrupt.
    """
    options = _parser().parse_args(argv)
    try:
        import rich  # noqa: F401
    except ModuleNotFoundError:
        return _refuse('showing results needs rich; install it with: pip install "milkweed[train]"')
    try:
        cases = select(options.only, [*all_cases(), *all_growths()])
    except UnknownCaseError as error:
        return _refuse(str(error))
    if options.list:
        _show(case_table(cases))
        return 0
    if options.out is not None:
        try:
            _require_writable(options.out)
        except OSError as error:
            return _refuse(f"--out {options.out} cannot be written: {error.strerror or error}; nothing was measured")
    with _threads(options.threads):
        return _run(cases, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="milkweed bench",
        description="Measures milkweed against the usual way: ratios of medians, taken in turn in one process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="run the cases with this name, shell pattern or part of a name; may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"samples of each side (default {_DEFAULT_REPEATS})"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a first impression: {_QUICK_REPEATS} samples, and memory only where the case is about memory",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write everything measured to this file")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads for torch (default: its own choice)")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _refuse(message: str) -> int:
    sys.stderr.write(f"milkweed bench: {message}\n")
    return _REFUSED


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"it is a folder; add a file name such as {path / 'results.json'}")
    # Trying is the only sure test: permission bits say nothing on read-only file systems or for the superuser.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        return


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(cases: list[Case | Growth], options: argparse.Namespace) -> int:
    repeats = options.repeats or (_QUICK_REPEATS if options.quick else _DEFAULT_REPEATS)
    settings: dict[str, object] = {"repeats": repeats, "quick": options.quick, "only": options.only}
    # Before measuring, so that the load is that of others.
    environment, warning = describe_environment(), busy_warning()
    done: list[Measurement] = []
    growths: list[GrowthMeasurement] = []
    try:
        _measure_all(cases, repeats, not options.quick, done, growths)
    except KeyboardInterrupt:
        _show_all(done, growths)
        sys.stderr.write(
            f"milkweed bench: interrupted after {len(done) + len(growths)} of {len(cases)} cases; no file was written\n"
        )
        return _INTERRUPTED
    _show_all(done, growths)
    if warning is not None:
        sys.stderr.write(f"milkweed bench: {warning}\n")
    failed = [result for result in [*done, *growths] if result.failure]
    for result in failed:
        sys.stderr.write(f"milkweed bench: {result.case.name}: {result.failure}\n")
    if options.out is not None:
        write_document(options.out, document(done, growths, environment, settings))
        sys.stderr.write(f"written to {options.out}\n")
    return _FAILED if failed else 0


def _measure_all(
    cases: list[Case | Growth],
    repeats: int,
    memory: bool,
    done: list[Measurement],
    growths: list[GrowthMeasurement],
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn between samples only: a display thread would take time from whichever side is running.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:

            def show(step: str, name: str = case.name) -> None:
                progress.update(task, description=f"{name}: {step}", refresh=True)

            if isinstance(case, Growth):
                growths.append(measure_growth(case, repeats=repeats, memory=memory, on_step=show))
            else:
                done.append(measure(case, repeats=repeats, memory=memory, on_step=show))
            progress.update(task, advance=1, refresh=True)


def _show_all(done: list[Measurement], growths: list[GrowthMeasurement]) -> None:
    if done:
        _show(result_table(done))
    if growths:
        _show(growth_table(growths))


def _show(table: object) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    console.print(table)
