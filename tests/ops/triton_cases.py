"""Launches of the Triton kernels at the sizes they are for, which test_triton_compiles compiles without running."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch


@dataclasses.dataclass(frozen=True)
class Case:
    """What to launch.

    Args:
        run: Calls the code that launches, on CPU tensors: `milkweed.ops.NAME.triton`, not the public function, which
            sends such tensors elsewhere.
        matrix: Whether every product in it must be on matrix units: True wherever operands are half precision.
        spills: Bytes of spilled registers that are allowed.
    """

    run: Callable[[], object]
    matrix: bool = True
    spills: int = 64


def _train(function: Callable[..., torch.Tensor], tensors: list[torch.Tensor], *options: object) -> None:
    """Forward and backward with every gradient."""
    active = [t.requires_grad_() for t in tensors]
    y = function(*active, *options)
    torch.autograd.grad(y, active, torch.empty_like(y))


def _monarch_tensors(features: int, nblocks: int, dtype: torch.dtype) -> list[torch.Tensor]:
    side = features // nblocks
    shapes = (8192, features), (nblocks, side, side), (nblocks, side, side), (features,)
    return [torch.empty(shape, dtype=dtype) for shape in shapes]


def _monarch(features: int, nblocks: int, dtype: torch.dtype, activation: str | None = None) -> None:
    from milkweed.ops.monarch import triton

    _train(triton.monarch_mm, _monarch_tensors(features, nblocks, dtype), activation)


def _monarch_in_one_launch(features: int, nblocks: int, dtype: torch.dtype, activation: str | None = None) -> None:
    """Forward only, keeping what the backward pass needs, which is made of the same kernels as that of wide factors."""
    from milkweed.ops.monarch import triton

    x, *parameters = _monarch_tensors(features, nblocks, dtype)
    triton.monarch_mm(x, *(t.requires_grad_() for t in parameters), activation)


def _block_diagonal(features: int, nblocks: int, dtype: torch.dtype) -> None:
    from milkweed.ops.block_diagonal import triton

    side = features // nblocks
    shapes = (8192, features), (nblocks, side, side), (features,)
    _train(triton.block_diagonal_mm, [torch.empty(shape, dtype=dtype) for shape in shapes], "silu")


def _long_convolution(length: int, dtype: torch.dtype) -> None:
    from triton.runtime.driver import driver

    from milkweed.ops.fft_conv import _triton_plan, triton

    arch = driver.active.get_current_target().arch
    _triton_plan._is_hopper = lambda device: arch >= 90
    _triton_plan._for_device.cache_clear()
    _triton_plan.make_plan.cache_clear()
    signals = [torch.empty(4, 2, length, dtype=dtype) for _ in range(3)]
    kernels = [torch.zeros(2, length), torch.zeros(2, length), torch.zeros(2)]
    _train(triton.fft_conv, [signals[0], *kernels, *signals[1:]])


def _diagonal_kernel() -> None:
    from milkweed.ops.ssm_kernel import triton

    shapes = (1, 1024, 32, 2), (1024, 32, 2)
    _train(triton.diagonal_ssm_kernel, [torch.empty(shape) for shape in shapes], 16384)


def _dense_kernel(modes: int) -> None:
    from milkweed.ops.dense_ssm_kernel import triton

    rows = 16
    _train(
        triton.dense_ssm_kernel,
        [torch.empty(rows, modes, modes), torch.empty(rows, modes), torch.empty(1, rows, modes)],
        16384,
    )
    triton.dense_ssm_state(torch.empty(1, rows, 16384), torch.empty(rows, modes, modes), torch.empty(rows, modes))


CASES = {
    "monarch 4096, 4 blocks, bf16": Case(partial(_monarch, 4096, 4, torch.bfloat16)),
    "monarch 4096, 16 blocks, bf16": Case(partial(_monarch, 4096, 16, torch.bfloat16, "gelu")),
    "monarch 512, 4 blocks, bf16": Case(partial(_monarch_in_one_launch, 512, 4, torch.bfloat16)),
    "monarch 1024, 16 blocks, bf16": Case(partial(_monarch_in_one_launch, 1024, 16, torch.bfloat16, "gelu_tanh")),
    "monarch 4096, 4 blocks, fp32": Case(partial(_monarch, 4096, 4, torch.float32)),
    "monarch 256, 4 blocks, fp32": Case(partial(_monarch_in_one_launch, 256, 4, torch.float32, "relu")),
    "block diagonal 4096, 4 blocks, bf16": Case(partial(_block_diagonal, 4096, 4, torch.bfloat16)),
    "long convolution 1024, bf16": Case(partial(_long_convolution, 1024, torch.bfloat16)),
    "long convolution 4096, bf16": Case(partial(_long_convolution, 4096, torch.bfloat16), spills=900),
    "long convolution 16384, bf16": Case(partial(_long_convolution, 16384, torch.bfloat16), matrix=False, spills=900),
    "long convolution 1024, fp32": Case(partial(_long_convolution, 1024, torch.float32), spills=2500),
    "diagonal state space, N 64": Case(_diagonal_kernel),
    # Squares are in full float32, which has no matrix unit. On sm_80 two backward kernels spill.
    "dense state space, N 64": Case(partial(_dense_kernel, 64), matrix=False, spills=1100),
}
