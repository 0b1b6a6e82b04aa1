"""How every Triton kernel is launched, and where its memory comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its tensors; Triton itself takes the current one, whose stream is another.

    Args:
        kernel: A ``triton.jit`` function.
        grid: Programs along each axis; nothing runs if there are none.
        *arguments: The kernel's arguments, the first of them a tensor.
        **constants: Its ``tl.constexpr`` arguments, and Triton's options.
    """
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
    """Make contiguous memory for a result or for numbers between two kernels; all of the Triton code takes it here.

    Args:
        like: On whose device it lies.
        *shape: Its sizes.
        dtype: Its dtype; that of ``like`` by default.

    Returns:
        Memory that nothing was written to.
    """
    return torch.empty(shape, dtype=like.dtype if dtype is None else dtype, device=like.device)


def made_once(make: Callable[..., T]) -> Callable[..., T]:
    """Keep the constants that a function makes on a device for as long as the process runs.

    Args:
        make: Takes hashable arguments, the last of them the device, and makes tensors by work on it alone.

    Returns:
        The same function; from the second call on with the same arguments it does no work on the device.
    """
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
