"""How the Triton kernels cut up a Monarch multiply; README.md derives the bounds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from milkweed.ops._triton_configs import power_of_two, shared_memory

# Numbers between the factors that one program holds, summed in float32: half of a multiprocessor's registers. Float32
# operands need registers for their pieces too.
_HELD = {2: 32768, 4: 8192}
# Bytes of the right and of the left factor that one step takes.
_STEP = 32768
# Shared memory that the kernel may take; GPUs of consumers have less.
_SHARED = 160 * 1024
# How much faster a GPU reads its cache than its memory, and the operations per byte of memory that keep it busy.
_CACHE_RATIO = 2.0
_BALANCE = 240
# Of the cache, for numbers between two launches.
_SHARE = 3
# By the start of the device's name: where one launch was compared with float64. It takes batched products in a loop,
# which compilers have got wrong on devices (triton-lang/triton issue 5620), and `python -m benchmarks` checks it.
_CHECKED: tuple[str, ...] = ()
_forced: list[bool] = []


@contextmanager
def one_launch() -> Iterator[None]:
    """Apply both factors in one launch inside the block, wherever it fits, to check and to measure it."""
    _forced.append(True)
    try:
        yield
    finally:
        _forced.pop()


@functools.cache
def _is_checked(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_name(device).startswith(_CHECKED)


@dataclasses.dataclass(frozen=True)
class Fused:
    """Tile of the kernel that applies both factors."""

    rows: int  # Of the input
    k: int  # Blocks of the right factor, as padded
    # Of the left one.
    l: int  # noqa: E741 - the paper's letter
    per: int  # Features from one to the other
    inputs: int  # Of a right block, at a time
    outputs: int  # Of a left block, at a time


def fused_tile(right: Tensor, left: Tensor) -> Fused | None:
    """Choose the tile of the kernel that applies both factors; None for two launches."""
    # right is (k, q, p), left (l, s, r). One launch is right, on devices where it has been checked, where a tile of
    # rows fits in registers, and where reading both factors anew for every tile costs less than writing the numbers
    # between to memory and reading them back.
    k, q, p = right.shape
    l, s, _ = left.shape  # noqa: E741 - the paper's letter
    if q % l or shared_memory(right.device) < _SHARED or not (_forced or _is_checked(right.device)):
        return None
    padded_k, padded_l, per = power_of_two(k, 1), power_of_two(l, 1), power_of_two(q // l, 1)
    per = max(per, 16 // padded_l, 16 // padded_k)
    width = padded_k * padded_l * per
    size = right.element_size()
    rows = min(64, _HELD[size] // width)
    traffic = (right.numel() + left.numel()) / rows if rows else 0
    if rows < 16 or width > 2 * k * q or traffic > k * p + l * s + 2 * _CACHE_RATIO * k * q:
        return None
    step = max(16, min(64, _STEP // (size * max(width, padded_k * rows))))
    return Fused(rows, padded_k, padded_l, per, min(step, power_of_two(p)), min(step, power_of_two(s)))


def rows_at_a_time(x: Tensor, right: Tensor) -> int:
    """How many rows of x (rows, k * p) go through both launches before the next ones."""
    # Where memory is what a launch waits for, so few that the numbers between them stay in the cache.
    k, q, p = right.shape
    rows = x.shape[0]
    intensity = 2 * q * p / ((q + p) * x.element_size())
    cache = _cache_size(x.device)
    if cache == 0 or intensity > _BALANCE:
        return rows
    # Whole tiles, and enough of them to fill the device.
    return min(rows, max(1024, cache // _SHARE // (k * q * x.element_size()) // 128 * 128))


@functools.cache
def _cache_size(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
