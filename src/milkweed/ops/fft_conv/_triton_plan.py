"""How the Triton kernels cut up a long convolution: transform length, DFT factors, windows, and their tables."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from milkweed.ops._common import is_known
from milkweed.ops._triton_launch import made_once

# The least side of a product that matrix units take.
_LEAST = 16


@dataclass(frozen=True)
class Tile:
    """A transform that one program holds."""

    factors: tuple[int, int, int]  # N1, N2, N3, whose product is its length; N2 = 1 means two stages
    warps: int  # Of the program


# Not measured on any device yet. Compiled for Hopper, none of these runs out of registers, except the longest by a
# little; from 4096 points on three stages take half as many products as two.
_UNMEASURED = {
    256: Tile((16, 1, 16), 4),
    512: Tile((32, 1, 16), 4),
    1024: Tile((32, 1, 32), 4),
    2048: Tile((64, 1, 32), 4),
    4096: Tile((16, 16, 16), 8),
    8192: Tile((32, 16, 16), 8),
    16384: Tile((32, 16, 32), 16),
}
# What differs on devices before Hopper, where a third stage leaves no registers.
_BEFORE_HOPPER = {4096: Tile((64, 1, 64), 4), 8192: Tile((64, 1, 128), 8)}
# By the start of the device's name, then by length.
_MEASURED: dict[str, dict[int, Tile]] = {}
# Points that a program can filter, and that it can sum the correlations of, by the operands' dtype: registers hold both
# parts in float32 beside the operands. The sums need 165 KiB of shared memory at 8192 points.
_LARGEST = {torch.float16: 16384, torch.float32: 2048}
_LARGEST_SUM = {torch.float16: 8192, torch.float32: 2048}
_LARGEST_BEFORE_HOPPER, _LARGEST_SUM_BEFORE_HOPPER = 8192, 2048
# Transforms that the first stage of a split one may leave: with 512, its matrix exceeds every GPU's shared memory.
_MOST_PLANES = 256
# What the two further passes over memory of a split transform cost, in products per number. Not measured yet.
_PASSES = 64


def tile_for(length: int, device: torch.device) -> Tile:
    """Choose how a transform of a power of two from 256 to 16384 points is cut up."""
    return _for_device(device)[length]


@functools.cache
def _for_device(device: torch.device) -> dict[int, Tile]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    measured = next((tiles for start, tiles in _MEASURED.items() if name.startswith(start)), {})
    return _UNMEASURED | ({} if _is_hopper(device) else _BEFORE_HOPPER) | measured


def _is_hopper(device: torch.device) -> bool:
    """Whether a device, or the one that the interpreter stands for, is of Hopper's generation or later."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _largest(dtype: torch.dtype, device: torch.device, summing: bool = False) -> int:
    largest = (_LARGEST_SUM if summing else _LARGEST)[dtype]
    if not _is_hopper(device):
        largest = min(largest, _LARGEST_SUM_BEFORE_HOPPER if summing else _LARGEST_BEFORE_HOPPER)
    return largest


def operands(u: Tensor) -> torch.dtype:
    """Choose the operands of products: float32 for float32 signals, float16 for others, bfloat16 included."""
    # float16 is eight times as precise as bfloat16, and tiles have a scale of their own, so that its range does not
    # matter.
    return torch.float32 if u.dtype == torch.float32 else torch.float16


def too_long(u: Tensor, points: int, reach: int, summing: bool) -> str | None:
    """Say why a convolution is longer than the kernels can split it, with the fix; None if it is not."""
    # ``points`` are those of one transform of the whole signal; ``reach`` is the greatest distance between two of the
    # kernel's lags: a short kernel is convolved in windows. ``summing`` says that gradients may be wanted, for which
    # programs hold less.
    if not is_known(points):
        return None  # asked when the length is known, see `check_length`
    largest = _largest(operands(u), u.device, summing)
    if points <= _MOST_PLANES * largest or reach <= largest // 2:
        return None
    return (
        f"it takes transforms of {_MOST_PLANES * largest} points at most here, got {u.shape[-1]} steps and a kernel "
        f"that reaches over {reach + 1}, which need {points}; use backend='eager'"
    )


def check_length(plan: Plan) -> None:
    """Refuse a plan that the kernels cannot carry out, which only a dynamic length can have led to."""
    if plan.outer > _MOST_PLANES:
        raise ValueError(
            f"a convolution of {plan.length} steps takes transforms of {_MOST_PLANES * plan.inner} points at most in "
            "Triton here; use backend='eager'"
        )


@dataclass(frozen=True)
class Plan:
    """One convolution's windows and transforms."""

    length: int  # Of the signals
    outer: int  # Transforms that the first stage leaves, through memory; 1 if a program holds the whole
    inner: int  # Points that a program transforms
    chunks: int  # Windows that a signal is read in
    step: int  # Numbers that each window yields
    lead: int  # Numbers that a window starts before those, for the lags from 0 on
    tail: int  # Numbers that it ends after those, for the negative lags
    device: torch.device  # Where it runs

    @property
    def points(self) -> int:
        """Points of the whole transform."""
        return self.outer * self.inner

    @property
    def tile(self) -> Tile:
        """How a program's transform is cut up."""
        return tile_for(self.inner, self.device)

    @property
    def rows(self) -> int:
        """Rows of a program's tile that hold signal: the rest is padding, which costs nothing."""
        if self.chunks > 1:
            return self.tile.factors[0]
        return _fitting_rows(self.length, self.inner // self.tile.factors[0], self.tile.factors[0])

    @property
    def outer_rows(self) -> int:
        """The same of the first stage of a split transform."""
        return _fitting_rows(self.length, self.inner, self.outer)

    @property
    def products(self) -> float:
        """Multiplications, by which plans are compared."""
        n1, n2, n3 = self.tile.factors
        if self.outer > 1:
            return self.points * (n1 + n2 + n3 + self.outer_rows + _PASSES)
        return self.chunks * self.points * (self.rows + n2 + n3)


def _fitting_rows(length: int, columns: int, most: int) -> int:
    return min(most, max(_LEAST, _power_of_two(-(-length // columns))))


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


@functools.lru_cache(1024)
def make_plan(
    length: int, lags: int, reverse_lags: int, dtype: torch.dtype, device: torch.device, summing: bool = False
) -> Plan:
    """Choose the windows of fewest products: one for the whole signal, or many if the kernel is much shorter."""
    largest = _largest(dtype, device, summing)
    smallest = min(_for_device(device))
    # Nothing may wrap around into 0 .. L - 1, and the two ends of the kernel may not overlap.
    points = max(_power_of_two(max(length + max(lags - 1, reverse_lags), lags + reverse_lags)), smallest)
    plans = [one_window(length, points, largest, device)]
    # Overlap-save: of a window's results the first K - 1 and the last R wrap around and are dropped, so windows start
    # ``step`` apart. Longer windows waste less of their products but take more for each number; the count decides.
    window = smallest
    while window <= largest:
        step = window - (lags - 1) - reverse_lags
        if window < points and step > 0:
            plans.append(Plan(length, 1, window, -(-length // step), step, lags - 1, reverse_lags, device))
        window *= 2
    return min(plans, key=lambda plan: (plan.outer > _MOST_PLANES, plan.products))


def make_frozen_plan(length: int, points: int, dtype: torch.dtype, device: torch.device) -> Plan:
    """Plan a convolution in one window, with a spectrum of ``points`` that is there already."""
    return one_window(length, points, _largest(dtype, device), device)


def one_window(length: int, points: int, largest: int, device: torch.device) -> Plan:
    """Plan one transform for a whole signal, split through memory if it has more points than a program holds."""
    outer = 1 if points <= largest else max(_LEAST, points // largest)
    return Plan(length, outer, points // outer, 1, length, 0, 0, device)


def kept_columns(plan: Plan, frequencies: int) -> tuple[int, ...]:
    """The values of k3, a power of two of them from 16 on, that a spectrum's lowest frequencies need."""
    # k = k1 + N1 (k2 + N2 k3): one k3 is a run of points / N3 frequencies, 0 .. F - 1 are at the first values, and
    # their mirror images, the negative frequencies of a real kernel, at the last.
    n3 = plan.tile.factors[2]
    each = plan.points // n3
    low = (frequencies - 1) // each + 1
    high = n3 - (plan.points - frequencies + 1) // each if frequencies > 1 else 0
    count = min(n3, max(_LEAST, _power_of_two(low + high)))
    if count == n3:
        return tuple(range(n3))
    # Those beside the highest that is needed fill up the number; their part of the spectrum is zero.
    return (*range(count - high), *range(n3 - high, n3))


def take_columns(table: Tensor, columns: tuple[int, ...], dim: int) -> Tensor:
    """Take the columns of `kept_columns` along a dimension; the table itself if these are all."""
    # By slices: a list of columns would be copied to the device at every call.
    every, count = table.shape[dim], len(columns)
    if count == every:
        return table
    low = next((i for i, column in enumerate(columns) if column != i), count)
    return torch.cat([table.narrow(dim, 0, low), table.narrow(dim, every - (count - low), count - low)], dim)


class Tables(NamedTuple):
    """DFT matrices and twiddle factors; real parts first, imaginary parts behind them."""

    dft1: Tensor  # (2, N1, N1) in the operands' dtype
    dft2: Tensor  # (2, N2, N2)
    dft3: Tensor  # (2, N3, KEPT), the columns k3 that are kept
    twiddles1: Tensor  # (2, N1, N2 * N3), exp(-2πi k1 r / N)
    twiddles2: Tensor  # (2, N2, N3), exp(-2πi k2 t3 / (N2 N3))


@made_once
def tables(factors: tuple[int, int, int], columns: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tables:
    """Make the tables of a tile; they are the same for every program and stay in cache."""
    n1, n2, n3 = factors
    return Tables(
        roots(n1, n1, n1, device).to(dtype),
        roots(n2, n2, n2, device).to(dtype),
        take_columns(roots(n3, n3, n3, device), columns, 2).to(dtype),
        roots(n1, n2 * n3, n1 * n2 * n3, device).to(dtype),
        roots(n2, n3, n2 * n3, device).to(dtype),
    )


def roots(rows: int, columns: int, order: int, device: torch.device) -> Tensor:
    """Evaluate exp(-2πi j k / order) for j < rows and k < columns: (2, rows, columns) in float64, real parts first."""
    index = torch.arange(rows, device=device)[:, None] * torch.arange(columns, device=device) % order
    angle = index.double() * (-2 * math.pi / order)
    return torch.stack([angle.cos(), angle.sin()])


@made_once
def outer_table(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the DFT matrix (2, size, size) of a split transform's first stage."""
    return roots(size, size, size, device).to(dtype)
