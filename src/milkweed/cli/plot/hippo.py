"""`milkweed plot hippo`."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkweed._suggest import unknown
from milkweed.cli.arguments import CommandParser
from milkweed.cli.errors import UsageError
from milkweed.cli.plot.common import check_out, late_progress, writing

if TYPE_CHECKING:
    from milkweed.plots.hippo import Memory

EXAMPLE = """\
  milkweed plot hippo --basis legt --N 32
  milkweed plot hippo --basis fout --animate
  milkweed plot hippo --animate --scaled --out past.gif"""
DEFAULT_SIZE, LARGEST_SIZE = 64, 256
# Of this one the rounding errors of 64 coefficients fill the picture.
SMALLER_SIZES = {"chebt": 24}


def make_parser() -> CommandParser:
    """The arguments of `plot hippo`.

    Returns:
        A parser.
    """
    parser = CommandParser(
        "plot hippo",
        "Draw a HiPPO basis: kernels, functions, measure, eigenvalues, and a signal's past read back from N numbers.",
        EXAMPLE,
    )
    parser.add_argument("--basis", metavar="NAME", default="legs", help="legs, legt, fout, lagt, ...; default: legs")
    parser.add_argument("--N", type=int, help=f"number of coefficients; default: {DEFAULT_SIZE} or the nearest it has")
    parser.add_argument("--animate", action="store_true", help="a GIF of the memory moving along the signal instead")
    parser.add_argument("--scaled", action="store_true", help="stretch the basis over the whole past; legs only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: hippo-NAME.png or .gif in this folder")
    return parser


def run(arguments: list[str]) -> int:
    """Draw a basis, or how it remembers, and print its figures.

    Args:
        arguments: The command line after the subject.

    Returns:
        The exit code.

    Raises:
        UsageError: If an argument does not fit, or the file cannot be written.
    """
    options = make_parser().parse(arguments)
    d_state = check_basis(options)
    suffix = ".gif" if options.animate else ".png"
    name = f"hippo-{options.basis}{'-scaled' if options.scaled else ''}{suffix}"
    out = options.out or Path(name)
    check_out(out, name, suffix)

    from milkweed.plots.hippo import frame_samples, remember, save_hippo, save_hippo_animation

    console = Console()
    with late_progress(1) as show:
        show("coefficients", 0)
        memory = remember(options.basis, d_state, options.scaled)
    # Before the figure, which may need a package that is not installed.
    print_basis(console, memory, memory.count if options.animate else memory.moment)
    with late_progress(len(frame_samples()) if options.animate else 1) as show, writing(out):
        if options.animate:
            save_hippo_animation(memory, out, lambda frames: show("frames", frames))
        else:
            save_hippo(memory, out)
    console.print(f"Drawn to [bold]{escape(str(out))}[/].", highlight=False, soft_wrap=True)
    return 0


def check_basis(options: argparse.Namespace) -> int:
    """Choose the size, and refuse what the basis does not have.

    Args:
        options: `basis`, `N` and `scaled`.

    Returns:
        N.

    Raises:
        UsageError: If the basis is unknown, or has no such size.
    """
    from milkweed import ssm

    if options.basis not in ssm.BASES:
        raise UsageError(unknown("--basis", options.basis, ssm.BASES))
    if options.scaled and options.basis != "legs":
        raise UsageError(f"--scaled is for --basis legs, which can cover the whole past; got --basis {options.basis}")
    fourier = ssm.BASES[options.basis].fourier
    if options.N is None:
        return SMALLER_SIZES.get(options.basis, DEFAULT_SIZE + fourier)
    if not 1 <= options.N <= LARGEST_SIZE:
        raise UsageError(f"--N {options.N} is out of range; expected 1 .. {LARGEST_SIZE}")
    if fourier and options.N % 2 == 0:
        raise UsageError(
            f"--N {options.N} does not suit {options.basis}, a constant and pairs of cos and sin; "
            f"try --N {options.N - 1}"
        )
    return options.N


def print_basis(console: Console, memory: "Memory", samples: int) -> None:
    """Print what the figure shows in numbers.

    Args:
        console: Where to print.
        memory: The basis and the signal.
        samples: The moment at which the reconstruction is judged.
    """
    from milkweed import ssm
    from milkweed.plots.hippo import spectrum

    name, reconstruction = memory.name, memory.reconstruction
    own, normal = spectrum(name, reconstruction.d_state)
    rank = ssm.BASES[name].rank
    largest = "beyond float64, A is far from normal" if own is None else f"{float(own.abs().max()):.4g}"
    if normal is not None and rank:
        largest += f"; of the normal part {float(normal.abs().max()):.4g}"
    title = f"HiPPO basis {name}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", show_header=False)
    table.add_row("N", str(reconstruction.d_state))
    table.add_row("measure", describe_measure(name, reconstruction.scaled))
    table.add_row("rank of the correction", "none makes A normal" if rank is None else str(rank))
    table.add_row("largest |eigenvalue|", largest)
    table.add_row(
        "RMSE of the past", f"{memory.rmse(samples):.3g} of the signal's rms at t = {memory.time(samples):.3g}"
    )
    console.print(table)


def describe_measure(name: str, scaled: bool) -> str:
    """Say in words how a basis weighs the past.

    Args:
        name: The basis.
        scaled: Whether it is stretched with time.

    Returns:
        A few words.
    """
    from milkweed import ssm

    if scaled:
        return "the whole past, evenly: 1/t on [0, t]"
    window = ssm.BASES[name].window
    decaying = {"legs": "e^-t", "legsd": "e^-t", "glagt": "e^-t", "foud": "½ e^(-t/2)", "lagt": "1"}
    if name == "fourier_decay":
        return "all the past: 3^-(⌊t/2⌋ + 1)"
    if math.isinf(window):
        return f"all the past: {decaying[name]}"
    return f"a window [0, {window:g}]: " + ("semicircle" if name == "chebt" else f"{1 / window:g}")
