"""`milkweed plot monarch`."""

import argparse
import difflib
import re
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
    from torch import Tensor

    from milkweed.plots.monarch import MonarchFit

EXAMPLE = """\
  milkweed plot monarch dct --rank 2 --nblocks 8
  milkweed plot monarch dft --n 256 --order natural
  milkweed plot monarch runs/digits-mixer/model.safetensors --tensor blocks.0.channels.up.weight"""
TRANSFORMS = ("dct", "dft", "dst", "hadamard")
DEFAULT_SIZE, LARGEST_SIZE = 64, 8192
MOST_LISTED = 12
EXAMPLE_OUT = "monarch.png"


def make_parser() -> CommandParser:
    """The arguments of `plot monarch`.

    Returns:
        A parser.
    """
    parser = CommandParser(
        "plot monarch",
        "Draw a matrix, its nearest Monarch matrix with both factors, the difference, and the error by nblocks.",
        EXAMPLE,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        default="dct",
        help=f"a transform ({', '.join(TRANSFORMS)}) or a .safetensors file; default: dct",
    )
    parser.add_argument("--n", type=int, help=f"size of the transform; default: {DEFAULT_SIZE}")
    parser.add_argument(
        "--order",
        choices=("fast", "natural"),
        help="columns of the transform: fast, as its fast algorithm reads them, which makes it a Monarch matrix; "
        "natural, as they are; default: fast",
    )
    parser.add_argument("--tensor", metavar="NAME", help="the matrix in the file; may be left out if it has only one")
    parser.add_argument("--nblocks", type=int, default=4, help="blocks per factor in the pictures; default: 4")
    parser.add_argument("--rank", type=int, help="rank of each slice; default: as MonarchLinear, block / nblocks")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="default: monarch-NAME.png in this folder")
    return parser


def run(arguments: list[str]) -> int:
    """Project a matrix, print the errors and draw the figure.

    Args:
        arguments: The command line after the subject.

    Returns:
        The exit code.

    Raises:
        UsageError: If an argument does not fit, or the figure cannot be written.
    """
    options = make_parser().parse(arguments)
    if options.out is not None:
        check_out(options.out, EXAMPLE_OUT)
    name, dense = load_matrix(options)
    out = options.out or Path(f"monarch-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png")
    check_out(out, EXAMPLE_OUT)
    check_blocks(name, dense, options.nblocks, options.rank)

    from milkweed.plots.monarch import save_monarch

    fits = fit_all(dense, options.nblocks, options.rank)
    console = Console()
    # Before the figure, which may need a package that is not installed.
    print_fits(console, fits, options.nblocks, f"{name}, {' × '.join(map(str, dense.shape))}")
    with writing(out):
        save_monarch(dense, fits, options.nblocks, out, figure_title(name, options))
    if reordered(options) and options.order is None:
        console.print("[dim]Columns in the order of the fast algorithm; --order natural leaves them in place.[/]")
    console.print(f"Drawn to [bold]{escape(str(out))}[/].", highlight=False, soft_wrap=True)
    return 0


def figure_title(name: str, options: argparse.Namespace) -> str:
    """Say what is drawn.

    Args:
        name: The matrix.
        options: `source`, `order`, `nblocks` and `rank`.

    Returns:
        One line.
    """
    order = ", columns in the order of its fast algorithm" if reordered(options) else ""
    blocks = "1 block" if options.nblocks == 1 else f"{options.nblocks} blocks"
    rank = "" if options.rank is None else f", rank {options.rank} per slice"
    return f"{name}{order}: Monarch matrix with {blocks} per factor{rank}"


def reordered(options: argparse.Namespace) -> bool:
    """Whether the columns of the matrix are permuted.

    Args:
        options: `source` and `order`.

    Returns:
        True for a transform in the order of its fast algorithm; Hadamard's is the natural one.
    """
    return options.source in TRANSFORMS and options.source != "hadamard" and options.order != "natural"


def load_matrix(options: argparse.Namespace) -> tuple[str, "Tensor"]:
    """Make or read the matrix.

    Args:
        options: `source`, `n`, `order` and `tensor`.

    Returns:
        Its name, and the matrix in float32 at least.

    Raises:
        UsageError: If SOURCE is neither a transform nor a file, or an option does not belong to it.
    """
    if options.source in TRANSFORMS:
        if options.tensor is not None:
            raise UsageError(
                f"--tensor {options.tensor} picks from a file, but SOURCE {options.source} is a transform; "
                "leave --tensor out, or name a .safetensors file"
            )
        return options.source, make_transform(options.source, options.n, reordered(options))
    path = Path(options.source)
    if path.suffix != ".safetensors" and not path.exists():
        raise UsageError(f"{unknown('SOURCE', options.source, TRANSFORMS)}. A path to a .safetensors file will do too")
    for option in ("n", "order"):
        value = getattr(options, option)
        if value is not None:
            raise UsageError(f"--{option} {value} belongs to a transform, but SOURCE {path} is a file; leave it out")
    return read_matrix(path, options.tensor)


def make_transform(name: str, n: int | None, fast: bool) -> "Tensor":
    """Write an orthogonal or unitary transform as a dense matrix.

    Args:
        name: One of TRANSFORMS.
        n: Its size, or None for the default.
        fast: Columns in the order of its factorisation, Monarch times permutation: without that permutation.

    Returns:
        (n, n).

    Raises:
        UsageError: If there is no transform of this size, or it is too large to be written out.
    """
    from milkweed.structures import transforms

    n = DEFAULT_SIZE if n is None else n
    if n > LARGEST_SIZE:
        raise UsageError(f"--n {n} is too large to write out; expected at most {LARGEST_SIZE}")
    try:
        matrix = getattr(transforms, f"monarch_{name}")(n, norm="ortho")
    except ValueError as error:
        raise UsageError(f"--n {n} does not suit {name}: {error}") from error
    return (matrix.factors[0] if fast else matrix).to_dense()


def read_matrix(path: Path, name: str | None) -> tuple[str, "Tensor"]:
    """Read one matrix of a safetensors file, and no other.

    Args:
        path: The file.
        name: The tensor, or None for the only matrix there is.

    Returns:
        Its name, and the matrix in float32 at least.

    Raises:
        UsageError: If the file cannot be read, or holds no such matrix.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"SOURCE {path} {state}; expected a .safetensors file, or one of {', '.join(TRANSFORMS)}")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {each: tuple(file.get_slice(each).get_shape()) for each in file.keys()}  # noqa: SIM118
            name = choose_tensor(path, shapes, name)
            dense = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"SOURCE {path} is no readable safetensors file ({error}); "
            "write it anew with safetensors.torch.save_file, or name another file"
        ) from error
    if not (dense.is_floating_point() or dense.is_complex()):
        kind = str(dense.dtype).removeprefix("torch.")
        raise UsageError(f"--tensor {name} in {path} holds {kind}; expected real or complex floating point numbers")
    if not dense.is_complex() and dense.dtype != torch.float64:
        dense = dense.float()
    if not dense.isfinite().all():
        count = int((~dense.isfinite()).sum())
        raise UsageError(f"--tensor {name} in {path} holds {count:,} NaN or infinite entries; expected finite numbers")
    return name, dense


def choose_tensor(path: Path, shapes: dict[str, tuple[int, ...]], name: str | None) -> str:
    """Find the matrix that is meant.

    Args:
        path: The file, for messages.
        shapes: All its tensors.
        name: As given.

    Returns:
        The name of a matrix that has entries.

    Raises:
        UsageError: If it does not exist, is none, or has to be picked.
    """
    matrices = [each for each, shape in shapes.items() if len(shape) == 2 and min(shape) > 0]
    if not matrices:
        raise UsageError(f"SOURCE {path} holds no matrix among its {len(shapes)} tensors; expected a 2-D one")
    listed = ", ".join(f"{each} {shapes[each]}" for each in matrices[:MOST_LISTED])
    if len(matrices) > MOST_LISTED:
        listed += f" and {len(matrices) - MOST_LISTED} more"
    if name is None:
        if len(matrices) == 1:
            return matrices[0]
        raise UsageError(f"SOURCE {path} holds {len(matrices)} matrices; pick one with --tensor: {listed}")
    if name not in shapes:
        near = difflib.get_close_matches(name, matrices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"--tensor {name} is not in {path}; {hint}Its matrices: {listed}")
    if name not in matrices:
        raise UsageError(f"--tensor {name} has shape {shapes[name]}; expected a matrix, e.g. {listed}")
    return name


def check_blocks(name: str, dense: "Tensor", nblocks: int, rank: int | None) -> None:
    """Refuse blocks or a rank that the matrix cannot have, before anything takes time.

    Args:
        name: The matrix, for messages.
        dense: (m, n).
        nblocks: Blocks per factor.
        rank: Rank of each slice, or None.

    Raises:
        UsageError: If there is no such Monarch matrix.
    """
    from milkweed.plots.monarch import fitting_nblocks
    from milkweed.structures.monarch import monarch_shapes

    m, n = dense.shape
    try:
        monarch_shapes(n, m, nblocks, rank)
    except ValueError as error:
        fitting = ", ".join(map(str, fitting_nblocks((m, n), rank)))
        hint = f" Powers of two that fit: --nblocks {fitting}" if fitting else ""
        raise UsageError(f"{name} is {m} × {n}: {error}.{hint}") from error


def fit_all(dense: "Tensor", nblocks: int, rank: int | None) -> list["MonarchFit"]:
    """Project the matrix for every power of two that fits.

    Args:
        dense: (m, n).
        nblocks: A number of blocks that must be among them.
        rank: Rank of each slice, or None.

    Returns:
        The projections by ascending nblocks.
    """
    from milkweed.plots.monarch import fit_monarch, fitting_nblocks

    counts = sorted({*fitting_nblocks(tuple(dense.shape), rank), nblocks})
    fits = []
    with late_progress(len(counts)) as show:
        for count in counts:
            show(f"nblocks {count}", len(fits))
            fits.append(fit_monarch(dense, count, rank))
    return fits


def print_fits(console: Console, fits: list["MonarchFit"], nblocks: int, title: str) -> None:
    """Print one row per number of blocks.

    Args:
        console: Where to print.
        fits: The projections.
        nblocks: The row that is drawn, printed in bold.
        title: Stands above the table.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escape(title), title_justify="left")
    for column in ("nblocks", "parameters", "of dense", "relative error"):
        table.add_column(column, justify="right", no_wrap=True)
    for fit in fits:
        row = (f"{fit.nblocks}", f"{fit.parameters:,}", f"{fit.share:.1%}", f"{fit.relative_error:.2%}")
        table.add_row(*row, style="bold" if fit.nblocks == nblocks else None)
    console.print(table)
