"""The look that all figures share, and how they reach the disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from milkweed._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

TRAIN_COLOUR, VAL_COLOUR, MUTED = "#8a8f98", "#c2410c", "#6b7280"
BLUE, GRID = "#1e4e79", "#e5e7eb"


def new_figure(width: float, height: float) -> "Figure":
    """Make a figure, in inches, that never touches a screen or matplotlib's global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('figures need matplotlib: pip install "milkweed[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: "Axes") -> None:
    """Take away the frame's upper and right edge, and grey the rest."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in one move: as PNG, or as SVG or PDF where the path ends so, which then hold no date."""
    form = path.suffix.lower().removeprefix(".")
    form = form if form in {"svg", "pdf"} else "png"
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=form, metadata=metadata)


def caption(axes: "Axes", title: str, details: str) -> None:
    """Put a title above a panel, and what it shows in small letters below that."""
    axes.set_title(title, loc="left", fontsize=10, pad=18)
    below = {"xycoords": "axes fraction", "xytext": (0, 5), "textcoords": "offset points"}
    axes.annotate(details, (0, 1), fontsize=8, color=MUTED, **below)


def legend(axes: "Axes", drop: float, columns: int) -> "Legend":
    """Put a legend below a panel, at so large a share of its height."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -drop), "ncols": columns}
    look = {"frameon": False, "fontsize": 8, "labelcolor": MUTED, "handlelength": 1.2, "columnspacing": 1.1}
    return axes.legend(**place, **look)


def ramp(place: float) -> tuple[float, ...]:
    """The colour at a place from 0 to 1 between blue and orange."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("n", [BLUE, "#5b8db8", "#9a8fa0", "#d9825b", VAL_COLOUR])(place)
