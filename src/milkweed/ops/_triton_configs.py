"""Tile sizes of the block-diagonal Triton kernels by device, as ``python -m benchmarks --tune`` measures them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@dataclasses.dataclass(frozen=True)
class Tile:
    """How a product is cut up among the programs of a kernel."""

    rows: int  # Of the input, at a time
    outputs: int  # Features of a block that are computed at a time
    inputs: int  # Features of a block that are summed over at a time
    warps: int = 4  # Of each program
    stages: int = 3  # Of the pipeline of loads

    def fitted(self, rows: int, outputs: int, inputs: int) -> Tile:
        """The same tile, no larger than a product of so many rows, outputs and inputs per block needs."""
        sizes = (
            min(self.rows, power_of_two(rows)),
            min(self.outputs, power_of_two(outputs)),
            min(self.inputs, power_of_two(inputs)),
        )
        # A warp has at least a 16 × 16 share of what is accumulated.
        warps = max(1, min(self.warps, math.prod(sorted(sizes)[1:]) // 256))
        return Tile(*sizes, warps, self.stages)


# What `--tune` measures; all fit on GPUs of data centres from 2020 on.
_CANDIDATES = {
    "multiply": (
        Tile(128, 256, 64, warps=8),
        Tile(128, 128, 64, warps=8),
        Tile(128, 256, 32, warps=8, stages=4),
        Tile(128, 128, 64, warps=4),
        Tile(128, 128, 32, warps=8, stages=4),
        Tile(64, 256, 64, warps=8),
        Tile(64, 128, 64, warps=4),
        Tile(64, 64, 64, warps=4),
    ),
    "sum_outer": (
        Tile(64, 128, 256, warps=8),
        Tile(64, 128, 128, warps=8),
        Tile(64, 256, 128, warps=8),
        Tile(64, 128, 128, warps=4),
        Tile(32, 128, 128, warps=8, stages=4),
        Tile(64, 64, 128, warps=4),
        Tile(64, 64, 64, warps=4),
    ),
}
# Not measured: by arithmetic, the widest tiles whose loads and sums fit, here for 144 and there for 96 KiB.
_LARGE = {kernel: tiles[0] for kernel, tiles in _CANDIDATES.items()}
_SMALL = {kernel: tiles[1] for kernel, tiles in _CANDIDATES.items()}
_LARGE_SHARED = 160 * 1024
# By the start of the device's name, then by kernel. No device has been measured yet.
_MEASURED: dict[str, dict[str, Tile]] = {}
_forced: dict[str, Tile] = {}


def candidates(kernel: str) -> tuple[Tile, ...]:
    """The tiles of a kernel that are worth measuring on a new device, the default first."""
    return _CANDIDATES[kernel]


@contextmanager
def forced_tile(kernel: str, tile: Tile) -> Iterator[None]:
    """Take one tile for every product inside the block, to measure it."""
    _forced[kernel] = tile
    try:
        yield
    finally:
        del _forced[kernel]


def tile_for(kernel: str, device: torch.device, rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tile:
    """Choose a tile for a product, no larger than the product needs."""
    if kernel in _forced:
        return _forced[kernel].fitted(rows, outputs, inputs)
    tile = _for_device(device)[kernel]
    if dtype == torch.float32:
        # Three products of split operands in place of one: registers for a quarter of the tile.
        tile = Tile(64, 64, 32, warps=8) if kernel == "multiply" else Tile(32, 64, 64, warps=8)
    return tile.fitted(rows, outputs, inputs)


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Shared memory of a program in bytes; that of a large GPU for the interpreter."""
    if device.type != "cuda":
        return _LARGE_SHARED
    # torch's type stubs do not know it.
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


@functools.cache
def _for_device(device: torch.device) -> dict[str, Tile]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    unmeasured = _LARGE if shared_memory(device) >= _LARGE_SHARED else _SMALL
    return unmeasured | next((tiles for start, tiles in _MEASURED.items() if name.startswith(start)), {})


def power_of_two(size: int, least: int = 16) -> int:
    """The next power of two that a matrix unit takes, from ``least`` on."""
    return max(least, 1 << (size - 1).bit_length())
