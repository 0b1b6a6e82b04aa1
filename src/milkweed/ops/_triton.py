"""Backends in Triton: whether they can run here, and their code only once one does."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from milkweed.ops._common import needs_plain_formula
from milkweed.ops.backends import Backend

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The first with matrix units for bfloat16 and float32, and with loads that do not wait.
_CAPABILITY = (8, 0)
# Read once: torch.compile can look at a constant, and Triton decides when a kernel is defined.
_INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"


def refuses(*args: object) -> str | None:
    """Say why the Triton kernels cannot run on these arguments."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if not _INSTALLED:
        return "Triton is not installed; pip install 'milkweed[triton]'"
    for tensor in tensors:
        if not tensor.is_cuda and not INTERPRETING:
            return (
                f"it needs a GPU, got a tensor on {tensor.device}; use backend='eager', or start Python with "
                "TRITON_INTERPRET=1"
            )
        if tensor.dtype not in _DTYPES:
            return f"it takes float32, bfloat16 and float16, got {tensor.dtype}; use backend='eager'"
        if tensor.is_cuda and (torch.version.hip or torch.cuda.get_device_capability(tensor.device) < _CAPABILITY):
            return (
                f"it needs an NVIDIA GPU of compute capability 8.0 or above, got {_name(tensor)}; use backend='eager'"
            )
    return needs_plain_formula(*args)


def passed_over(*args: object) -> str | None:
    """Say why an automatic choice does not take the Triton kernels although they could run."""
    if INTERPRETING and not any(isinstance(arg, Tensor) and arg.is_cuda for arg in args):
        return "in Triton's interpreter it is slow; it runs only if asked for by name"
    return None


def _name(tensor: Tensor) -> str:
    return torch.cuda.get_device_name(tensor.device)


def triton_backend(run: Callable[..., Tensor]) -> Backend:
    """Make the Triton backend of an operation; ``run`` imports the kernels when it is called, not before."""
    return Backend("triton", run, refuses, passed_over)
