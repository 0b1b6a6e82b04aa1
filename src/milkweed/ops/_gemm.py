"""The faster of the two matrix products that torch ships for float32 on CPUs."""

from __future__ import annotations

import platform

import torch
from torch import Tensor


def _made_by_intel() -> bool:
    if name := platform.processor():
        return "Intel" in name
    try:
        with open("/proc/cpuinfo") as file:
            return "GenuineIntel" in file.read(4096)
    except OSError:
        return False


_INTEL = _made_by_intel()


def prefers_onednn(x: Tensor) -> bool:
    """Say whether oneDNN multiplies large matrices faster than MKL here.

    With AVX-512 on AMD's CPUs, where MKL leaves it unused, it is up to twice as fast; on Intel's, or with AVX2 alone,
    10-20% slower.

    Args:
        x: An operand.

    Returns:
        True where `linear` is worth while.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not _INTEL
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by oneDNN, without gradients.

    No public function reaches it for plain float32 tensors; this is the op that torch.compile itself emits.

    Args:
        x: (rows, in).
        weight: (out, in).

    Returns:
        (rows, out).
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result
