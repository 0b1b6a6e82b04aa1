"""Tensor functions: tensors in, tensors out, no state. All are differentiable and safe to compile and export."""

from milkweed.ops.backends import Backend, Choice, available_backends, explain, use_backend
from milkweed.ops.block_diagonal import block_diagonal_mm
from milkweed.ops.dense_ssm_kernel import dense_ssm_advance, dense_ssm_kernel, dense_ssm_state
from milkweed.ops.fft_conv import FrozenKernel, fft_conv
from milkweed.ops.implicit_kernel import implicit_kernel
from milkweed.ops.monarch import monarch_mm
from milkweed.ops.recurrence import linear_recurrence
from milkweed.ops.ssm_kernel import diagonal_ssm_kernel, diagonal_ssm_state

__all__ = [
    "Backend",
    "Choice",
    "FrozenKernel",
    "available_backends",
    "block_diagonal_mm",
    "dense_ssm_advance",
    "dense_ssm_kernel",
    "dense_ssm_state",
    "diagonal_ssm_kernel",
    "diagonal_ssm_state",
    "explain",
    "fft_conv",
    "implicit_kernel",
    "linear_recurrence",
    "monarch_mm",
    "use_backend",
]
