"""`milkweed plot hippo`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkweed._suggest import UsageError, unknown
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


def hippo(
    *,
    basis: str = "legs",
    N: int | None = None,
    animate: bool = False,
    scaled: bool = False,
    out: Path | None = None,
) -> None:
    """Draw a HiPPO basis: kernels, functions, measure, eigenvalues, and a signal's past read back from N numbers.

    Args:
        basis (NAME): legs, legt, fout, lagt, ...
        N: number of coefficients; default: 64 or the nearest it has
        animate: a GIF of the memory moving along the signal instead
        scaled: stretch the basis over the whole past; legs only
        out (FILE): default: hippo-NAME.png or .gif in this folder
    """
    d_state = check_basis(basis, N, scaled)
    suffix = ".gif" if animate else ".png"
    name = f"hippo-{basis}{'-scaled' if scaled else ''}{suffix}"
    out = out or Path(name)
    check_out(out, name, suffix)

    from milkweed.plots.hippo import frame_samples, remember, save_hippo, save_hippo_animation

    console = Console()
    with late_progress(1) as show:
        show("coefficients", 0)
        memory = remember(basis, d_state, scaled)
    # Before the figure, which may need a package that is not installed.
    print_basis(console, memory, memory.count if animate else memory.moment)
    with late_progress(len(frame_samples()) if animate else 1) as show, writing(out):
        if animate:
            save_hippo_animation(memory, out, lambda frames: show("frames", frames))
        else:
            save_hippo(memory, out)
    console.print(f"Drawn to [bold]{escape(str(out))}[/].", highlight=False, soft_wrap=True)


def check_basis(basis: str, N: int | None, scaled: bool) -> int:
    """Choose N, and refuse what the basis does not have."""
    from milkweed import ssm

    if basis not in ssm.BASES:
        raise UsageError(unknown("--basis", basis, ssm.BASES))
    if scaled and basis != "legs":
        raise UsageError(f"--scaled is for --basis legs, which can cover the whole past; got --basis {basis}")
    fourier = ssm.BASES[basis].fourier
    if N is None:
        return SMALLER_SIZES.get(basis, DEFAULT_SIZE + fourier)
    if not 1 <= N <= LARGEST_SIZE:
        raise UsageError(f"--N {N} is out of range; expected 1 .. {LARGEST_SIZE}")
    if fourier and N % 2 == 0:
        raise UsageError(f"--N {N} does not suit {basis}, a constant and pairs of cos and sin; try --N {N - 1}")
    return N


def print_basis(console: Console, memory: "Memory", samples: int) -> None:
    """Print what the figure shows in numbers."""
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
    """Say in words how a basis weighs the past."""
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
