"""`milkweed plot monarch`."""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkweed._suggest import UsageError, unknown
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


def monarch(
    source: str = "dct",
    *,
    n: int | None = None,
    order: Literal["fast", "natural"] | None = None,
    tensor: str | None = None,
    nblocks: int = 4,
    rank: int | None = None,
    out: Path | None = None,
) -> None:
    """Draw a matrix, its nearest Monarch matrix with both factors, the difference, and the error by nblocks.

    Args:
        source: a transform (dct, dft, dst, hadamard) or a .safetensors file
        n: size of the transform; default: 64
        order: columns of the transform: fast, as its fast algorithm reads them, which makes it a Monarch matrix;
            natural, as they are; default: fast
        tensor (NAME): the matrix in the file; may be left out if it has only one
        nblocks: blocks per factor in the pictures
        rank: rank of each slice; default: as MonarchLinear, block / nblocks
        out (FILE.png): default: monarch-NAME.png in this folder
    """
    if out is not None:
        check_out(out, EXAMPLE_OUT)
    # Hadamard's natural order is that of its fast algorithm.
    reordered = source in TRANSFORMS and source != "hadamard" and order != "natural"
    name, dense = load_matrix(source, n, order, tensor, reordered)
    out = out or Path(f"monarch-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png")
    check_out(out, EXAMPLE_OUT)
    check_blocks(name, dense, nblocks, rank)

    from milkweed.plots.monarch import save_monarch

    fits = fit_all(dense, nblocks, rank)
    console = Console()
    # Before the figure, which may need a package that is not installed.
    print_fits(console, fits, nblocks, f"{name}, {' × '.join(map(str, dense.shape))}")
    columns = ", columns in the order of its fast algorithm" if reordered else ""
    blocks = "1 block" if nblocks == 1 else f"{nblocks} blocks"
    slices = "" if rank is None else f", rank {rank} per slice"
    with writing(out):
        save_monarch(dense, fits, nblocks, out, f"{name}{columns}: Monarch matrix with {blocks} per factor{slices}")
    if reordered and order is None:
        console.print("[dim]Columns in the order of the fast algorithm; --order natural leaves them in place.[/]")
    console.print(f"Drawn to [bold]{escape(str(out))}[/].", highlight=False, soft_wrap=True)


def load_matrix(
    source: str, n: int | None, order: str | None, tensor: str | None, reordered: bool
) -> tuple[str, "Tensor"]:
    """Make or read the matrix: its name, and the matrix in float32 at least."""
    if source in TRANSFORMS:
        if tensor is not None:
            raise UsageError(
                f"--tensor {tensor} picks from a file, but SOURCE {source} is a transform; "
                "leave --tensor out, or name a .safetensors file"
            )
        return source, make_transform(source, n, reordered)
    path = Path(source)
    if path.suffix != ".safetensors" and not path.exists():
        raise UsageError(f"{unknown('SOURCE', source, TRANSFORMS)}. A path to a .safetensors file will do too")
    for option, value in (("n", n), ("order", order)):
        if value is not None:
            raise UsageError(f"--{option} {value} belongs to a transform, but SOURCE {path} is a file; leave it out")
    return read_matrix(path, tensor)


def make_transform(name: str, n: int | None, fast: bool) -> "Tensor":
    """Write an orthogonal or unitary transform as a dense matrix."""
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
    """Read one matrix of a safetensors file, and no other."""
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
    """Find the matrix that is meant."""
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
    """Refuse blocks or a rank that the matrix cannot have, before anything takes time."""
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
    """Project the matrix for every power of two that fits."""
    from milkweed.plots.monarch import fit_monarch, fitting_nblocks

    counts = sorted({*fitting_nblocks(tuple(dense.shape), rank), nblocks})
    fits = []
    with late_progress(len(counts)) as show:
        for count in counts:
            show(f"nblocks {count}", len(fits))
            fits.append(fit_monarch(dense, count, rank))
    return fits


def print_fits(console: Console, fits: list["MonarchFit"], nblocks: int, title: str) -> None:
    """Print one row per number of blocks."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escape(title), title_justify="left")
    for column in ("nblocks", "parameters", "of dense", "relative error"):
        table.add_column(column, justify="right", no_wrap=True)
    for fit in fits:
        row = (f"{fit.nblocks}", f"{fit.parameters:,}", f"{fit.share:.1%}", f"{fit.relative_error:.2%}")
        table.add_row(*row, style="bold" if fit.nblocks == nblocks else None)
    console.print(table)
