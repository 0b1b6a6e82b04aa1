"""Times the tiles of block-diagonal Triton kernels on Monarch factors, for ``--tune``."""

from __future__ import annotations

import dataclasses
import sys

import torch
from torch import Tensor

import milkweed as mw
from benchmarks.case import draw
from benchmarks.machine import seconds
from milkweed.ops import _triton_configs as configs

KERNELS = ("multiply", "sum_outer")


def tune(device: str) -> dict[str, configs.Tile]:
    """Time all tiles and print what to check in; the best tile by kernel."""
    tokens, features, nblocks, calls = (8192, 4096, 4, 10) if device == "cuda" else (16, 64, 4, 1)
    side, half = features // nblocks, torch.bfloat16
    best = {}
    for kernel in KERNELS:
        with torch.device(device):
            x, weight = draw(tokens, features, dtype=half), draw(nblocks, side, side, dtype=half, gradient=True)

        def call(training: bool = kernel == "sum_outer", x: Tensor = x, weight: Tensor = weight) -> object:
            y = mw.ops.block_diagonal_mm(x, weight, backend="triton")
            return torch.autograd.grad(y, weight, x) if training else y

        times = {}
        for tile in configs.candidates(kernel):
            with configs.forced_tile(kernel, tile):
                try:
                    times[tile] = min(seconds(call, calls, device) for _ in range(calls + 1))
                except Exception as error:
                    sys.stdout.write(f"{kernel} {tile}: {type(error).__name__}: {str(error)[:100]}\n")
                    continue
            sys.stdout.write(f"{kernel} {tile}: {times[tile] * 1e3:.3f} ms\n")
        if times:
            best[kernel] = min(times, key=times.__getitem__)
    name = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    entries = "\n".join(f'        "{kernel}": {tile},' for kernel, tile in best.items())
    sys.stdout.write(f'Entry for _MEASURED in _triton_configs.py:\n    "{name}": {{\n{entries}\n    }},\n')
    return best


def record(best: dict[str, configs.Tile]) -> dict[str, object]:
    """The tiles as JSON values."""
    return {kernel: dataclasses.asdict(tile) for kernel, tile in best.items()}
