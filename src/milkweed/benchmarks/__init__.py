"""Measured comparisons with the usual way: ``milkweed bench``.

Every figure is a ratio of two medians that were taken alternately in one process, on the same inputs and threads, after
both sides were compared with a float64 reference. Absolute times on a shared machine mean little; such ratios do.

A case is a [`Case`][milkweed.benchmarks.Case] that a file in ``cases/`` registers;
[`measure`][milkweed.benchmarks.measure] runs one and [`main`][milkweed.benchmarks.main] is the command.
"""

from milkweed.benchmarks.command import main
from milkweed.benchmarks.registry import Case, Figure, Pair, all_cases, register, select
from milkweed.benchmarks.run import Measurement, measure

__all__ = ["Case", "Figure", "Measurement", "Pair", "all_cases", "main", "measure", "register", "select"]
