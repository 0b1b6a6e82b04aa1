"""How every Triton kernel is launched, and where its memory comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument; Triton would take the current one, whose stream is another."""
    if 0 in grid:
        return
    device = arguments[0].device
    # Asking costs a tenth of what entering the context does.
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)


def unwritten(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Make contiguous memory for a result, or between two kernels; all of the Triton code takes it here."""
    return torch.empty(shape, dtype=like.dtype if dtype is None else dtype, device=like.device)


def made_once(make: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function of hashable arguments, the device last, makes by work on that device alone."""
    found: dict[tuple[object, ...], T] = {}

    @functools.wraps(make)
    def get(*arguments: Any) -> T:
        if arguments in found:
            return found[arguments]
        made = make(*arguments)
        device = arguments[-1]
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                # Its memory belongs to the graph, and is written when the graph runs.
                return made
            # The next call may come on another stream, which would not wait for this one.
            torch.cuda.current_stream(device).synchronize()
        found[arguments] = made
        return made

    return get
