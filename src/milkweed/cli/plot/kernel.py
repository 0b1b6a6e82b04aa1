"""`milkweed plot kernel`."""

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkweed._suggest import UsageError
from milkweed.cli.plot.common import check_out, late_progress, writing

if TYPE_CHECKING:
    from milkweed.models import Model
    from milkweed.nn.filters import StateSpaceFilter
    from milkweed.plots.kernels import LayerKernels

EXAMPLE = """\
  milkweed plot kernel runs/smnist
  milkweed plot kernel runs/smnist --layer blocks.0.layer --length 784 --linear"""
LARGEST_LENGTH = 2**17
MOST_DRAWN, MOST_LISTED = 8, 6


def kernel(
    run: Path, *, layer: str | None = None, length: int = 1024, linear: bool = False, out: Path | None = None
) -> None:
    """Draw the convolution kernels that the state space layers of a trained model learned.

    Args:
        run: folder of a run, or what save_pretrained wrote
        layer (NAME): one layer only; default: the first 8
        length: lags
        linear: a linear axis of lags; default: logarithmic
        out (FILE.png): default: kernel-RUN.png in this folder
    """
    name = run.absolute().name.removesuffix(".safetensors")
    default = f"kernel-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png"
    out = out or Path(default)
    check_out(out, default)
    if not 2 <= length <= LARGEST_LENGTH:
        raise UsageError(f"--length {length} is out of range; expected 2 .. {LARGEST_LENGTH}")
    layers = choose_layers(run, load_model(run), layer)

    from milkweed.plots.kernels import save_kernels

    console, found = Console(), {}
    drawn = list(layers)[:MOST_DRAWN]
    with late_progress(len(drawn)) as show:
        for each in drawn:
            show(each, len(found))
            found[each] = compute(each, layers[each], length)
    # Before the figure, which may need a package that is not installed.
    print_kernels(console, found, f"{name}: kernels, {length:,} lags")
    with late_progress(len(drawn)) as show, writing(out):
        title = f"Kernels of {name}"
        save_kernels(found, out, title, log=not linear, show=lambda done: show("figure", done))
    if len(drawn) < len(layers):
        console.print(f"[dim]The first {len(drawn)} of {len(layers)} layers; --layer NAME draws another.[/]")
    console.print(f"Drawn to [bold]{escape(str(out))}[/].", highlight=False, soft_wrap=True)


def load_model(path: Path) -> "Model":
    """Read the model of a run."""
    from milkweed.convert import load_pretrained

    if not path.exists():
        places = [path, Path("runs") / path]
        near = [place.parent / each for place in places for each in _nearest(place.name, neighbours(place))]
        hint = f"did you mean {near[0]}?" if near else "name a folder such as runs/smnist"
        raise UsageError(f"RUN {path} does not exist; {hint}")
    if path.is_dir() and not (path / "model.safetensors").is_file():
        trained = (path / "config.yaml").is_file()
        fix = "finish its training with --resume auto" if trained else "name the folder of a run, e.g. runs/smnist"
        raise UsageError(f"RUN {path} has no model.safetensors; {fix}")
    if path.is_file() and path.suffix != ".safetensors":
        raise UsageError(f"RUN {path} is no .safetensors file; name the folder of a run, e.g. runs/smnist")
    try:
        return load_pretrained(path)
    except (ValueError, OSError) as error:
        raise UsageError(f"RUN {path} cannot be read: {error}") from error


def _nearest(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.5)


def neighbours(path: Path) -> list[str]:
    """List the folders beside a path that hold a model."""
    if not path.parent.is_dir():
        return []
    return sorted(each.parent.name for each in path.parent.glob("*/model.safetensors"))


def choose_layers(path: Path, model: "Model", name: str | None) -> dict[str, "StateSpaceFilter"]:
    """Find the layers that are meant."""
    from milkweed.plots.kernels import state_space_layers

    layers = state_space_layers(model)
    if not layers:
        leaves = [type(module).__name__ for module in model.modules() if not any(module.children())]
        listed = ", ".join(f"{count} {kind}" for kind, count in Counter(leaves).most_common(MOST_LISTED))
        raise UsageError(f"RUN {path} is a {type(model).__name__} without state space layers; it has {listed}")
    if name is None:
        return layers
    if name not in layers:
        near = difflib.get_close_matches(name, layers, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        listed = ", ".join(list(layers)[:MOST_LISTED])
        if len(layers) > MOST_LISTED:
            listed += f" and {len(layers) - MOST_LISTED} more"
        raise UsageError(f"--layer {name} is no state space layer of {path}; {hint}It has: {listed}")
    return {name: layers[name]}


def compute(name: str, layer: "StateSpaceFilter", length: int) -> "LayerKernels":
    """Compute a layer's kernels."""
    from milkweed.plots.kernels import layer_kernels

    broken = [key for key, value in layer.named_parameters(recurse=False) if not value.isfinite().all()]
    if broken:
        raise UsageError(f"{name} holds NaN or infinite numbers in {', '.join(broken)}; its training diverged")
    kernels = layer_kernels(layer, length)
    parts = [kernels.kernel] if kernels.future is None else [kernels.kernel, kernels.future]
    if not all(part.isfinite().all() for part in parts):
        raise UsageError(f"the kernels of {name} grow beyond all numbers; a smaller --length shows their beginning")
    return kernels


def print_kernels(console: Console, found: dict[str, "LayerKernels"], title: str) -> None:
    """Print one row per layer."""
    from milkweed.plots.kernels import timescales

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escape(title), title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for column in ("channels", "median 1/dt", "fresh", "half of the energy in"):
        table.add_column(column, justify="right")
    for name, kernels in found.items():
        now, fresh = (float(timescales(layer).median()) for layer in (kernels.layer, kernels.fresh))
        reach = int(kernels.half_energy().float().median())
        table.add_row(
            escape(name),
            type(kernels.layer).__name__.removesuffix("Filter"),
            f"{kernels.layer.d_model:,}",
            f"{now:,.1f}",
            f"{fresh:,.1f}",
            f"{reach:,} lag{'s' * (reach != 1)}",
        )
    console.print(table)
