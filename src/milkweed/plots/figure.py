"""The look that all figures share, and how they reach the disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from milkweed._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOUR, VAL_COLOUR, MUTED = "#8a8f98", "#c2410c", "#6b7280"


def new_figure(width: float, height: float) -> "Figure":
    """Make a figure that never touches a screen or matplotlib's global state.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        An empty figure with an Agg canvas.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('figures need matplotlib: pip install "milkweed[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: "Axes") -> None:
    """Take away the frame's upper and right edge, and grey the rest.

    Args:
        axes: Changed in place.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG in one move.

    Args:
        figure: The figure.
        path: The file to write or replace.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
