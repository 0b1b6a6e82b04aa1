"""Tensor functions: tensors in, tensors out, no state. All are differentiable and safe to compile and export."""

from milkweed.ops.backends import Backend, Choice, available_backends, explain, use_backend
from milkweed.ops.block_diagonal import block_diagonal_mm
from milkweed.ops.fft_conv import fft_conv
from milkweed.ops.monarch import monarch_mm
from milkweed.ops.ssm_kernel import diagonal_ssm_kernel, diagonal_ssm_state

__all__ = [
    "Backend",
    "Choice",
    "available_backends",
    "block_diagonal_mm",
    "diagonal_ssm_kernel",
    "diagonal_ssm_state",
    "explain",
    "fft_conv",
    "monarch_mm",
    "use_backend",
]
