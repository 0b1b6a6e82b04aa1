"""Backends in Triton: whether they can run here, and their code only once one does."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from milkweed.ops._common import needs_plain_formula
from milkweed.ops.backends import Backend

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Tell whether Triton kernels run in its interpreter, on the CPU, as ``TRITON_INTERPRET=1`` asks for.

    Returns:
        Whether they do.
    """
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def refuses(*args: object) -> str | None:
    """Say why the Triton kernels cannot run on these arguments.

    Args:
        *args: The operation's arguments.

    Returns:
        The reason with the fix, or None.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if not _installed():
        return "Triton is not installed; pip install 'milkweed[triton]'"
    for tensor in tensors:
        if not tensor.is_cuda and not interpreting():
            return f"it needs a GPU, got a tensor on {tensor.device}; use backend='eager', or set TRITON_INTERPRET=1"
        if tensor.dtype not in _DTYPES:
            return f"it takes float32, bfloat16 and float16, got {tensor.dtype}; use backend='eager'"
    return needs_plain_formula(*args)


def passed_over(*args: object) -> str | None:
    """Say why an automatic choice does not take the Triton kernels although they could run.

    Args:
        *args: The operation's arguments.

    Returns:
        The reason, or None.
    """
    if interpreting() and not any(isinstance(arg, Tensor) and arg.is_cuda for arg in args):
        return "in Triton's interpreter it is slow; it runs only if asked for by name"
    return None


def triton_backend(package: str, function: str) -> Backend:
    """Make the backend of an operation whose package has a ``triton.py``, which is imported at the first call.

    Args:
        package: The package's full name.
        function: Of its ``triton.py``.

    Returns:
        The backend.
    """

    def run(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = getattr(importlib.import_module(f"{package}.triton"), function)(*args, **kwargs)
        return found

    return Backend("triton", run, refuses, passed_over)
