"""The convolution kernels of state space layers: how far back they look, and how far training has moved them."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from milkweed.nn.filters import StateSpaceFilter
from milkweed.nn.filters.decay import decay_rate
from milkweed.plots.figure import BLUE, GRID, MUTED, VAL_COLOUR, caption, legend, new_figure, plain, ramp, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MOST_ROWS, MOST_CELLS = 256, 240
RIDGES = 5
MOST_POINTS = 4000
_FRESH = "#9ca3af"


@dataclass(frozen=True)
class LayerKernels:
    """What one layer computes with."""

    layer: StateSpaceFilter  # the layer
    kernel: Tensor  # (R, H, L) over the past, lags 0, 1, ..., in float32
    future: Tensor | None  # (R, H, L) over the future, lags -1, -2, ..., or None for a causal layer
    fresh: StateSpaceFilter  # the same layer with parameters drawn anew

    @property
    def length(self) -> int:
        """L, lags to each side."""
        return self.kernel.shape[-1]

    def order(self) -> Tensor:
        """(H,) indices of the channels, from the shortest timescale to the longest."""
        return timescales(self.layer, per_channel=True).argsort()

    def rows(self) -> Tensor:
        """All kernels in the order of `order`: (H R, L), or (H R, 2 L) from farthest future to farthest past."""
        both = self.kernel if self.future is None else torch.cat([self.future.flip(-1), self.kernel], -1)
        return both[:, self.order()].transpose(0, 1).flatten(0, 1)

    def half_energy(self) -> Tensor:
        """(R, H), the number of lags, to each side, that hold half of a kernel's energy."""
        energy = self.kernel.square()
        if self.future is not None:
            energy = energy + self.future.square()
        share = energy.cumsum(-1) / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
        return (share < 0.5).sum(-1) + 1


@torch.no_grad()
def layer_kernels(layer: StateSpaceFilter, length: int, seed: int = 0) -> LayerKernels:
    """Compute the kernels of a layer, which stays as it is, and draw a fresh one of the same kind."""
    # At double precision, so that a picture shows the parameters and no rounding.
    double = copy.deepcopy(layer).cpu().double().eval()
    kernel = double.system().kernel(length).float()
    count = double.channels
    fresh = copy.deepcopy(double)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_parameters()
    return LayerKernels(double, kernel[:count], kernel[count:] if double.bidirectional else None, fresh)


@torch.no_grad()
def timescales(layer: StateSpaceFilter, per_channel: bool = False) -> Tensor:
    """A layer's timescales 1/dt in steps, (H,), or (H N',) with one per mode, or their geometric mean per channel."""
    log_dt = layer.get_parameter("log_dt").double()
    if per_channel and log_dt.ndim > 1:
        log_dt = log_dt.flatten(1).mean(1)
    return torch.exp(-log_dt).flatten()


@torch.no_grad()
def eigenvalues(layer: StateSpaceFilter) -> Tensor | None:
    """The diagonal matrix of a layer in continuous time, (M,) complex128, one of each conjugate pair.

    They are those of A for S4D, of the normal part of A for S4; None for layers without such parameters.
    """
    parameters = dict(layer.named_parameters(recurse=False))
    if "A_real" not in parameters:
        return None
    real = -decay_rate(parameters["A_real"].double(), str(getattr(layer, "decay", "exp"))).flatten()
    imag = parameters.get("A_imag")
    return torch.complex(real, torch.zeros_like(real) if imag is None else imag.double().flatten())


def state_space_layers(model: nn.Module) -> dict[str, StateSpaceFilter]:
    """The state space layers of a model by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, StateSpaceFilter)}
    # By the layer's name, as users see it.
    return {name.removesuffix(".filter"): module for name, module in found.items()}


def lag_edges(length: int, cells: int = MOST_CELLS, log: bool = True) -> np.ndarray:
    """Divide L lags into at most so many cells, wider ones further back with `log`: ascending integers from 0 to L."""
    if not log:
        return np.unique(np.linspace(0, length, min(cells, length) + 1).round().astype(int))
    return np.unique(np.concatenate([[0], np.geomspace(1, length, cells).round().astype(int)]))


def kernel_picture(rows: Tensor, length: int, log: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Reduce kernels (K, L), or (K, 2 L) with the future first, to a picture, each relative to its largest entry.

    Returned are edges (C + 1,) as lags, and cells (min(K, 256), C), each the largest entry around with its sign.
    """
    kept = torch.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().long()
    entries = rows[kept].numpy()
    edges = lag_edges(length, log=log)
    two_sided = entries.shape[1] == 2 * length
    if two_sided:
        edges = np.concatenate([-edges[:0:-1], edges])
    starts = edges[:-1] + (length if two_sided else 0)
    high, low = np.maximum.reduceat(entries, starts, 1), np.minimum.reduceat(entries, starts, 1)
    # A mean would cancel what oscillates.
    cells = np.where(high >= -low, high, low)
    return edges, cells / np.maximum(np.abs(cells).max(1, keepdims=True), np.finfo(np.float32).tiny)


def save_kernels(
    found: Mapping[str, LayerKernels],
    path: Path,
    title: str,
    *,
    log: bool = True,
    show: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw kernels, timescales and eigenvalues, a row of panels per layer; `show` gets the number of layers so far."""
    figure = new_figure(14.5, 0.5 + 3.35 * len(found))
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.03, hspace=0)
    figure.suptitle(title, x=0.008, ha="left", fontsize=13, fontweight="bold", parse_math=False)
    rows: Sequence[SubFigure] = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    for index, (row, (name, kernels)) in enumerate(zip(rows, found.items(), strict=True)):
        show(index)
        heat, ridges, steps, plane = row.subplots(1, 4, width_ratios=(1.35, 1.15, 0.8, 0.8))
        _draw_heat(heat, kernels, log)
        caption(heat, name, _describe(kernels))
        _draw_ridges(ridges, kernels, log)
        _draw_timescales(steps, kernels)
        _draw_eigenvalues(plane, kernels)
    save_figure(figure, path)


def _describe(kernels: LayerKernels) -> str:
    layer = kernels.layer
    count = kernels.kernel.shape[0]
    heads = "" if count == 1 else f" × {count} readouts"
    sides = "" if kernels.future is None else ", both directions"
    kind = type(layer).__name__.removesuffix("Filter")
    return f"{kind}: {layer.d_model} channels{heads}{sides}, each relative to its peak"


def _draw_heat(axes: "Axes", kernels: LayerKernels, log: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    rows = kernels.rows()
    edges, cells = kernel_picture(rows, kernels.length, log)
    colours = LinearSegmentedColormap.from_list("kernels", [BLUE, "#8fb1cc", "#ffffff", "#e8a27c", VAL_COLOUR])
    heights = np.linspace(0, len(rows), len(cells) + 1)
    image = axes.pcolormesh(edges, heights, cells, cmap=colours, vmin=-1, vmax=1, rasterized=True)
    _lag_axis(axes, kernels, log)
    axes.set(ylim=(0, len(rows)), yticks=[0, len(rows)])
    axes.set_ylabel("short  ←  memory  →  long", fontsize=9, color=MUTED, labelpad=-8)
    plain(axes)
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.015, 0, 0.02, 1)), ticks=[-1, 0, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=MUTED)


def _draw_ridges(axes: "Axes", kernels: LayerKernels, log: bool) -> None:
    order, steps = kernels.order(), timescales(kernels.layer, per_channel=True)
    places = torch.linspace(0, len(order) - 1, min(RIDGES, len(order))).round().long().unique()
    lags = np.arange(-kernels.length if kernels.future is not None else 0, kernels.length) + 0.5
    for height, place in enumerate(places):
        channel = int(order[place])
        line = kernels.kernel[0, channel]
        if kernels.future is not None:
            line = torch.cat([kernels.future[0, channel].flip(-1), line])
        line = line / line.abs().max().clamp_min(torch.finfo(line.dtype).tiny)
        colour = ramp(height / max(len(places) - 1, 1))
        axes.axhline(2 * height, color=GRID, linewidth=0.8)
        axes.plot(lags, 2 * height + 0.95 * line, color=colour, linewidth=1.1)
    _lag_axis(axes, kernels, log)
    labels = [f"{channel}\n1/dt {_short(float(steps[channel]))}" for channel in order[places].tolist()]
    axes.set_yticks([2 * height for height in range(len(places))], labels)
    axes.set_ylim(-1.2, 2 * len(places) - 0.8)
    plain(axes)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)
    readout = "" if len(kernels.kernel) == 1 else ", first readout"
    caption(axes, "A few channels", f"by number, from short memory to long{readout}")


def _draw_timescales(axes: "Axes", kernels: LayerKernels) -> None:
    before, after = (timescales(layer).numpy() for layer in (kernels.fresh, kernels.layer))
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    if high < low * 1.5:
        low, high = low / 2, high * 2
    bins = np.geomspace(low, high, 19)
    axes.hist(before, bins, color=_FRESH, alpha=0.45, label="fresh draw")
    axes.hist(after, bins, color=VAL_COLOUR, histtype="step", linewidth=1.6, label="this model")
    axes.set_xscale("log")
    axes.set_xlabel("1/dt, in steps", fontsize=9, color=MUTED)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    plain(axes)
    legend(axes, 0.17, 2)
    unit = "modes" if kernels.layer.get_parameter("log_dt").ndim > 1 else "channels"
    caption(axes, "Timescales 1/dt", f"median {_short(float(np.median(after)))} steps; number of {unit}")


def _draw_eigenvalues(axes: "Axes", kernels: LayerKernels) -> None:
    before, after = eigenvalues(kernels.fresh), eigenvalues(kernels.layer)
    if before is None or after is None:
        axes.set_axis_off()
        axes.text(0, 0.5, "no eigenvalues to read", transform=axes.transAxes, fontsize=9, color=MUTED)
        return
    before, after = _thinned(before), _thinned(after)
    few = len(after) < 200
    axes.scatter(
        after.real,
        after.imag,
        s=26 if few else 7,
        color=VAL_COLOUR,
        alpha=0.7 if few else 0.35,
        linewidths=0,
        label="this model",
    )
    axes.scatter(before.real, before.imag, s=10, color=BLUE, marker="x", linewidths=0.8, label="fresh draw")
    both = torch.cat([before, after])
    if float(both.real.max()) < 0:
        decades = np.log10(-both.real.numpy())
        if decades.max() - decades.min() > 1:
            axes.set_xscale("symlog", linthresh=float(10 ** np.floor(decades.min())))
    width = float(both.real.max() - both.real.min())
    if width < 0.2:
        middle = float(both.real.mean())
        axes.set_xlim(middle - 0.2, middle + 0.2)
    low, high = float(both.imag.min()), float(both.imag.max())
    if max(-low, high) > 30:
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(min(1.5 * low, -2), max(1.5 * high, 2))
    elif low == high:
        axes.set_ylim(low - 1, high + 1)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("real part", fontsize=9, color=MUTED)
    axes.set_ylabel("imaginary part", fontsize=9, color=MUTED)
    plain(axes)
    below = legend(axes, 0.17, 2)
    for handle in below.legend_handles:
        handle.set_alpha(1)
        handle.set_sizes([24])
    what = "of the normal part of A" if "P" in dict(kernels.layer.named_parameters(recurse=False)) else "of A"
    caption(axes, "Eigenvalues", what if low == high == 0 else f"{what}, one of each pair")


def _lag_axis(axes: "Axes", kernels: LayerKernels, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter

    start = -kernels.length if kernels.future is not None else 0
    if log:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        powers = [10**k for k in range(int(math.log10(kernels.length)) + 1)]
        if len(powers) > 3 and start:
            powers = powers[::2]
        axes.set_xticks([*([-p for p in reversed(powers)] if start else []), 0, *powers])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.minorticks_off()
    axes.set_xlim(start, kernels.length)
    axes.set_xlabel("lag, in steps" + (" (negative: the future)" if start else ""), fontsize=9, color=MUTED)


def _thinned(values: Tensor) -> Tensor:
    """All distinct values, or an even selection of very many: layers start with one spectrum in every channel."""
    values = torch.view_as_complex(torch.view_as_real(values).float().unique(dim=0))
    return values[:: -(-len(values) // MOST_POINTS)]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
