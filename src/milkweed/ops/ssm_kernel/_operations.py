"""The custom ops of diagonal state spaces, from whichever two sums compute them; README.md derives the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops import pairs
from milkweed.ops._common import register_differentiable, without_autocast
from milkweed.ops.ssm_kernel import reference

# (c (batch, rows, N, 2), dt_a (rows, N, 2), L, reverse): Re sum_n c_n exp(dt_a_n l), (batch, rows, L), the last lag
# first if reversed.
SumOfModes = Callable[[Tensor, Tensor, int, bool], Tensor]
# (g (batch, rows, L), dt_a, first, reverse): sum_l g_l e^{z l} and, if asked for, sum_l l g_l e^{z l}, each
# (batch, rows, N, 2); the last entry of g is that of lag 0 if reversed.
Moments = Callable[[Tensor, Tensor, bool, bool], tuple[Tensor, Tensor]]


def _conjugate(a: Tensor) -> Tensor:
    # No constant that would have to be copied to the device.
    return torch.stack([a[..., 0], -a[..., 1]], -1)


def kernel_operation(name: str, sum_of_modes: SumOfModes, moments: Moments) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Make the custom op of the kernel: c (batch, rows, N, 2), dt_a (rows, N, 2), L -> (batch, rows, L)."""
    # ``sum_of_modes`` gives the kernel without its factor 2, ``moments`` the sums of its backward pass.

    @torch.library.custom_op(f"milkweed::{name}", mutates_args=())
    def forward(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
        with without_autocast(c):
            return sum_of_modes(2 * c, dt_a, length, False)

    @forward.register_fake
    def _(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
        return c.new_empty(*c.shape[:2], length)

    @torch.library.custom_op(f"milkweed::{name}_backward", mutates_args=())
    def backward(grad: Tensor, c: Tensor, dt_a: Tensor, need_dt_a: bool) -> tuple[Tensor, Tensor]:
        with without_autocast(grad):
            zeroth, first = moments(grad, dt_a, need_dt_a, False)
        grad_c = 2 * _conjugate(zeroth)
        return grad_c, 2 * _conjugate(pairs.multiply(c, first)).sum(0) if need_dt_a else c.new_empty(0)

    @backward.register_fake
    def _(grad: Tensor, c: Tensor, dt_a: Tensor, need_dt_a: bool) -> tuple[Tensor, Tensor]:
        return c.new_empty(c.shape), dt_a.new_empty(dt_a.shape if need_dt_a else 0)

    def gradients(
        grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Tensor]:
        c, dt_a, _ = inputs
        return backward(grad, c, dt_a, needed[1])

    register_differentiable(forward, reference.diagonal_ssm_kernel, gradients)

    @register_flop_formula(getattr(torch.ops.milkweed, name))
    def flops(c_shape: Any, dt_a_shape: Any, length: int, **kwargs: Any) -> int:
        batch, rows, modes = (int(size) for size in c_shape[:3])
        return 4 * batch * rows * modes * int(length)

    @register_flop_formula(getattr(torch.ops.milkweed, f"{name}_backward"))
    def backward_flops(grad_shape: Any, c_shape: Any, dt_a_shape: Any, need_dt_a: bool, **kwargs: Any) -> int:
        return flops(c_shape, dt_a_shape, grad_shape[-1]) * (1 + int(need_dt_a))

    return forward


def state_operation(name: str, sum_of_modes: SumOfModes, moments: Moments) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the custom op of the state, the kernel's transpose: u (batch, rows, L), dt_a -> (batch, rows, N, 2)."""
    # ``moments`` give the state itself and one sum of its backward pass, ``sum_of_modes`` the other.

    @torch.library.custom_op(f"milkweed::{name}", mutates_args=())
    def forward(u: Tensor, dt_a: Tensor) -> Tensor:
        with without_autocast(u):
            return moments(u, dt_a, False, True)[0]

    @forward.register_fake
    def _(u: Tensor, dt_a: Tensor) -> Tensor:
        return u.new_empty(*u.shape[:2], dt_a.shape[1], 2)

    @torch.library.custom_op(f"milkweed::{name}_backward", mutates_args=())
    def backward(grad: Tensor, u: Tensor, dt_a: Tensor, need_u: bool, need_dt_a: bool) -> tuple[Tensor, Tensor]:
        conjugate = _conjugate(grad)
        with without_autocast(grad):
            grad_u = sum_of_modes(conjugate, dt_a, u.shape[-1], True) if need_u else u.new_empty(0)
            first = moments(u, dt_a, True, True)[1] if need_dt_a else None
        return grad_u, u.new_empty(0) if first is None else _conjugate(pairs.multiply(conjugate, first)).sum(0)

    @backward.register_fake
    def _(grad: Tensor, u: Tensor, dt_a: Tensor, need_u: bool, need_dt_a: bool) -> tuple[Tensor, Tensor]:
        return u.new_empty(u.shape if need_u else 0), dt_a.new_empty(dt_a.shape if need_dt_a else 0)

    def gradients(
        grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Tensor]:
        return backward(grad, *inputs, *needed)

    register_differentiable(forward, reference.diagonal_ssm_state, gradients)

    @register_flop_formula(getattr(torch.ops.milkweed, name))
    def flops(u_shape: Any, dt_a_shape: Any, **kwargs: Any) -> int:
        batch, rows, length = (int(size) for size in u_shape)
        return 4 * batch * rows * int(dt_a_shape[1]) * length

    @register_flop_formula(getattr(torch.ops.milkweed, f"{name}_backward"))
    def backward_flops(
        grad_shape: Any, u_shape: Any, dt_a_shape: Any, need_u: bool, need_dt_a: bool, **kwargs: Any
    ) -> int:
        return flops(u_shape, dt_a_shape) * (int(need_u) + 2 * int(need_dt_a))

    return forward
