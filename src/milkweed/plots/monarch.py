"""A matrix beside its nearest Monarch matrix: the factors, what is lost, and how that depends on nblocks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed.plots.figure import BLUE, GRID, MUTED, TRAIN_COLOUR, VAL_COLOUR, caption, new_figure, plain, save_figure
from milkweed.structures import Monarch, project_monarch
from milkweed.structures.monarch import monarch_shapes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

MOST_CELLS = 256
MOST_OUTLINED_BLOCKS = 64


@dataclass(frozen=True)
class MonarchFit:
    """The nearest Monarch matrix for one number of blocks."""

    matrix: Monarch  # the Monarch matrix
    relative_error: float  # ‖W − M‖ / ‖W‖ in Frobenius norm

    @property
    def nblocks(self) -> int:
        """Blocks per factor."""
        return self.matrix.nblocks[0]

    @property
    def parameters(self) -> int:
        """Numbers stored in both factors."""
        return self.matrix.num_parameters

    @property
    def share(self) -> float:
        """Parameters relative to the dense matrix."""
        return self.parameters / math.prod(self.matrix.shape)


def fitting_nblocks(shape: tuple[int, int], rank: int | None = None) -> list[int]:
    """The powers of two that a matrix (m, n) can have as nblocks.

    That is as long as a block has at least nblocks features on its narrower side, and more than the rank: beyond that a
    rank makes ever more parameters of ever smaller slices.
    """
    found = []
    nblocks = 1
    while _fits(shape, nblocks, None) and _fits(shape, nblocks, rank):
        found.append(nblocks)
        nblocks *= 2
    return found


def _fits(shape: tuple[int, int], nblocks: int, rank: int | None) -> bool:
    try:
        monarch_shapes(shape[1], shape[0], nblocks, rank)
    except ValueError:
        return False
    return True


def fit_monarch(dense: Tensor, nblocks: int, rank: int | None = None) -> MonarchFit:
    """Project a matrix (m, n), real or complex, for a figure."""
    m, n = dense.shape
    if nblocks == 1 and rank is None:
        # One block of full rank holds any matrix; its decomposition would take longer than all others together.
        right = torch.eye(n, dtype=dense.dtype) if m >= n else dense
        left = dense if m >= n else torch.eye(m, dtype=dense.dtype)
        return MonarchFit(Monarch(right[None], left[None]), 0.0)
    projection = project_monarch(dense, nblocks, rank)
    return MonarchFit(projection.matrix, projection.relative_error)


def matrix_picture(matrices: Tensor, most: int = MOST_CELLS) -> np.ndarray:
    """Reduce matrices (..., m, n) to at most so many cells per side; of complex ones the magnitude."""
    numbers = matrices.detach().cpu()
    numbers = (numbers.abs() if numbers.is_complex() else numbers).float()
    m, n = numbers.shape[-2:]
    size = min(m, most), min(n, most)
    if size == (m, n):
        return numbers.numpy()
    # A panel has fewer pixels than a large matrix has entries. Each cell shows its largest entry with its sign: a mean
    # would cancel what oscillates, and every n-th entry would show patterns that are not there.
    batch = numbers.reshape(-1, m, n)
    index = F.adaptive_max_pool2d(batch.abs(), size, return_indices=True)[1]
    picked = batch.flatten(1).gather(1, index.flatten(1))
    return picked.view(*numbers.shape[:-2], *size).numpy()


def block_diagonal_picture(blocks: Tensor, most: int = MOST_CELLS) -> np.ndarray:
    """Put the blocks (k, q, p) of a factor at their places, with NaN where it stores nothing."""
    k = blocks.shape[0]
    cells = matrix_picture(blocks, max(1, most // k))
    rows, columns = cells.shape[1:]
    picture = np.full((k, rows, k, columns), np.nan, dtype=cells.dtype)
    picture[np.arange(k), :, np.arange(k)] = cells
    return picture.reshape(k * rows, k * columns)


def save_monarch(dense: Tensor, fits: Sequence[MonarchFit], nblocks: int, path: Path, title: str) -> None:
    """Draw a matrix, its nearest Monarch matrix, the difference, both factors and the error by nblocks.

    ``fits`` holds one for each number of blocks, ascending; matrix and factors are those of ``nblocks``. Complex
    numbers are drawn by their magnitude.
    """
    chosen = next((fit for fit in fits if fit.nblocks == nblocks), None)
    if chosen is None:
        raise ValueError(f"fits must hold one with nblocks={nblocks}; got {[fit.nblocks for fit in fits]}")
    upper, lower = _panels(title, _box_height(*dense.shape))
    _draw_matrices(upper, dense, chosen)
    _draw_factors(lower[:2], chosen.matrix)
    _draw_errors(lower[2], fits, chosen)
    save_figure(upper[0].figure, path)


def _panels(title: str, upper_height: float) -> np.ndarray:
    """(2, 3) axes, the upper row for pictures of this height relative to their width."""
    side, between, above, below = 3.15, 0.6, 0.45, 0.85
    heights = side * upper_height, side
    width, height = 3 * side + 2 * between + 0.95, sum(heights) + 2 * (above + below) + 0.4
    figure = new_figure(width, height)
    # The automatic layout overlooks colour bars that hang below their panel.
    figure.set_layout_engine("none")
    figure.text(0.18 / width, 1 - 0.18 / height, title, ha="left", va="top", fontsize=12, fontweight="bold")
    margins = {
        "left": 0.5 / width,
        "right": 1 - 0.45 / width,
        "top": 1 - (above + 0.4) / height,
        "bottom": below / height,
        "wspace": between / side,
        "hspace": (above + below) / (sum(heights) / 2),
    }
    return figure.subplots(2, 3, height_ratios=heights, gridspec_kw=margins)


def _box_height(rows: int, columns: int) -> float:
    """A picture's height relative to its width; long or wide ones are squeezed, as a true strip would show nothing."""
    return min(max(rows / columns, 0.6), 1.0)


def _draw_matrices(panels: Sequence["Axes"], dense: Tensor, chosen: MonarchFit) -> None:
    nearest = chosen.matrix.to_dense()
    difference = dense - nearest
    m, n = dense.shape
    captions = (
        ("Matrix W", f"{m:,} × {n:,}, {m * n:,} parameters"),
        ("Nearest Monarch matrix M", f"nblocks {chosen.nblocks}, {chosen.parameters:,} parameters"),
        ("Difference W − M", f"{chosen.relative_error:.2%} of the norm, largest entry {difference.abs().max():.2g}"),
    )
    pictures = [matrix_picture(matrix) for matrix in (dense, nearest, difference)]
    # The matrix sets the scale of all three, so that the difference looks as small as it is.
    limit = _limit(pictures[0])
    for axes, picture, texts in zip(panels, pictures, captions, strict=True):
        _draw_picture(axes, picture, (m, n), limit, dense.is_complex())
        caption(axes, *texts)
        axes.set(xticks=_ends(n), yticks=_ends(m))


def _draw_factors(panels: Sequence["Axes"], matrix: Monarch) -> None:
    factors = {"Left factor": matrix.left, "Right factor": matrix.right}
    for axes, (name, blocks) in zip(panels, factors.items(), strict=True):
        k, q, p = blocks.shape
        picture = block_diagonal_picture(blocks)
        _draw_picture(axes, picture, (k * q, k * p), _limit(picture), blocks.is_complex())
        when = "applied first" if name == "Right factor" else "applied after a permutation"
        caption(axes, name, f"{k:,} block{'s' * (k > 1)} of {q:,} × {p:,}, {when}")
        axes.set(xticks=_edges(k, p), yticks=_edges(k, q))
        if k <= MOST_OUTLINED_BLOCKS:
            _outline(axes, blocks.shape)


def _draw_errors(axes: "Axes", fits: Sequence[MonarchFit], chosen: MonarchFit) -> None:
    counts = [fit.nblocks for fit in fits]
    errors = [fit.relative_error for fit in fits]
    axes.axvline(chosen.nblocks, color=MUTED, linewidth=0.8, linestyle=":")
    axes.plot(counts, [fit.share for fit in fits], color=TRAIN_COLOUR, marker="s", markersize=4, label="parameters")
    axes.plot(counts, errors, color=VAL_COLOUR, marker="o", markersize=5, label="relative error")
    axes.annotate(
        f"{chosen.relative_error:.1%}",
        (chosen.nblocks, chosen.relative_error),
        xytext=(-6 if chosen is fits[-1] else 6, 6),
        textcoords="offset points",
        ha="right" if chosen is fits[-1] else "left",
        fontsize=9,
        fontweight="bold",
        color=VAL_COLOUR,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    caption(axes, "Error by nblocks", "shares of the dense matrix: its norm, its parameters")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("nblocks", fontsize=9, color=MUTED)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9, labelcolor=MUTED)
    axes.set_box_aspect(1)
    axes.set_anchor("NW")
    plain(axes)


def _draw_picture(axes: "Axes", picture: np.ndarray, shape: tuple[int, int], limit: float, magnitude: bool) -> None:
    """An image and its colour bar; the ticks count entries, however many of them share a cell."""
    from matplotlib.ticker import MaxNLocator

    rows, columns = shape
    image = axes.imshow(
        picture,
        cmap="Oranges" if magnitude else _diverging(),
        vmin=0 if magnitude else -limit,
        vmax=limit,
        extent=(0, columns, rows, 0),
        aspect="auto",
        interpolation="nearest",
    )
    height = _box_height(rows, columns)
    axes.set_box_aspect(height)
    axes.set_facecolor(GRID)
    axes.set_anchor("NW")
    axes.spines[:].set_color(GRID)
    axes.tick_params(length=0, labelsize=8, colors=MUTED)
    clipped = np.nanmax(np.abs(picture)) > limit
    bar = axes.figure.colorbar(
        image,
        ticks=MaxNLocator(5),
        cax=axes.inset_axes((0, -0.14 / height, 1, 0.025 / height)),
        orientation="horizontal",
        extend=("max" if magnitude else "both") if clipped else "neither",
        label="magnitude" if magnitude else None,
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=MUTED)
    bar.ax.xaxis.label.set(fontsize=8, color=MUTED)
    bar.ax.xaxis.offsetText.set(fontsize=8, color=MUTED)


def _outline(axes: "Axes", shape: tuple[int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    k, q, p = shape
    for index in range(k):
        corner = index * p, index * q
        axes.add_patch(Rectangle(corner, p, q, fill=False, edgecolor=MUTED, linewidth=0.6, clip_on=False))


def _limit(picture: np.ndarray) -> float:
    """A colour scale's end that a few outliers do not stretch."""
    entries = np.abs(picture[np.isfinite(picture)])
    return float(np.quantile(entries, 0.995) or entries.max() or 1.0)


def _ends(size: int) -> list[int]:
    return [0, size] if size < 4 else [0, size // 2, size]


def _edges(count: int, size: int) -> list[int]:
    step = -(-count // (8 if count * size < 1000 else 4))
    return [index * size for index in range(0, count + 1, step)]


def _diverging() -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("milkweed", [BLUE, "#ffffff", VAL_COLOUR])
