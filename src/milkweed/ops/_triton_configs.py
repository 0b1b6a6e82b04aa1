"""Tile sizes of the Triton kernels by device, measured with ``benchmarks/gpu.py`` where there is an entry."""

from __future__ import annotations

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True)
class Tile:
    """How a product is cut up among the programs of a kernel.

    Args:
        rows: Of the output.
        columns: Of the output.
        inner: Of the sum, at a time.
        warps: Of each program.
        stages: Of the pipeline of loads.
    """

    rows: int
    columns: int
    inner: int
    warps: int = 4
    stages: int = 3


# Not measured on any device yet: tiles of the size that matrix products on data-centre GPUs use.
_UNMEASURED = {
    "multiply": Tile(128, 128, 32, warps=8),
    "sum_outer": Tile(128, 128, 32, warps=8),
}
# By the start of the device's name, then by kernel.
_MEASURED: dict[str, dict[str, Tile]] = {}


def tile_for(kernel: str, device: torch.device, sizes: tuple[int, int, int]) -> Tile:
    """Choose a tile for a product, no larger than the product needs.

    Args:
        kernel: ``"multiply"`` or ``"sum_outer"``.
        device: Where it runs.
        sizes: Rows, columns and inner size of the product.

    Returns:
        The tile.
    """
    chosen = _for_device(device)[kernel]
    fitted = (
        min(most, _power_of_two(size))
        for most, size in zip((chosen.rows, chosen.columns, chosen.inner), sizes, strict=True)
    )
    return Tile(*fitted, warps=chosen.warps, stages=chosen.stages)


@functools.cache
def _for_device(device: torch.device) -> dict[str, Tile]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((tiles for start, tiles in _MEASURED.items() if name.startswith(start)), _UNMEASURED)


def _power_of_two(size: int) -> int:
    """The next power of two, at least 16: what a matrix unit takes."""
    return max(16, 1 << (size - 1).bit_length())
