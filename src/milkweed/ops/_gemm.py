"""The faster of the two matrix products that torch ships for float32 on CPUs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed.ops._common import autocast_dtype, needs_plain_formula, register_differentiable

# Multiply-adds from which on a custom op's overhead does not count.
_LEAST_WORK = 2**24


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
    """Say whether oneDNN multiplies large matrices faster than MKL here."""
    # With AVX-512 on AMD's CPUs, where MKL leaves it unused, it is up to twice as fast; on Intel's, or with AVX2 alone,
    # 10-20% slower.
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not _INTEL
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by oneDNN, without gradients: x (rows, in), weight (out, in), bias (out,) -> (rows, out)."""
    # No public function reaches it for plain float32 tensors; this is the op that torch.compile itself emits.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``, by whichever of the two is faster."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    fast = (
        not torch.compiler.is_compiling()  # which chooses for itself
        and prefers_onednn(x)
        and all(t.dtype == torch.float32 for t in tensors)
        and autocast_dtype(x) is None
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and needs_plain_formula(*tensors) is None
    )
    if not fast:
        return F.linear(x, weight, bias)
    return _linear(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("milkweed::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    x, weight, _ = inputs
    nothing = grad.new_empty(0)
    return [
        linear(grad, weight.T) if needed[0] else nothing,
        linear(grad.T, x.T) if needed[1] else nothing,
        *([grad.sum(0) if needed[2] else nothing] if len(needed) > 2 else []),
    ]


register_differentiable(_linear, F.linear, _gradients)
