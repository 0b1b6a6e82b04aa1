"""The custom ops of dense state spaces, from whichever functions compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from milkweed.ops._common import register_differentiable


class Kernel(Protocol):
    """Computes the kernel c a^l b."""

    def __call__(self, a: Tensor, b: Tensor, c: Tensor, length: int, reverse: bool) -> Tensor:
        """From a (rows, N, N), b (rows, N), c (batch, rows, N) to (batch, rows, L), the last lag first if reversed."""
        ...


class Gradients(Protocol):
    """Computes the gradients of sum(g * kernel(a, b, c)); those not needed may be any tensor."""

    def __call__(
        self, g: Tensor, a: Tensor, b: Tensor, c: Tensor, need_a: bool, need_b: bool, need_c: bool, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last entry of g is that of lag 0 if reversed."""
        ...


def gradients_like(
    x: Tensor, y: Tensor, z: Tensor, need_x: bool, need_y: bool, need_z: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Make room for gradients: one new tensor each, empty where it is not needed."""
    return (
        x.new_empty(x.shape if need_x else 0),
        y.new_empty(y.shape if need_y else 0),
        z.new_empty(z.shape if need_z else 0),
    )


def _wanted(found: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Gradients as `gradients_like` says: of the right shape and contiguous, or empty."""
    return [g.contiguous() if need else g.new_empty(0) for g, need in zip(found, needed, strict=True)]


def kernel_operation(
    name: str, kernel: Kernel, gradients: Gradients, plain: Callable[..., Tensor]
) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """Make the custom op of the kernel: a (rows, N, N), b (rows, N), c (batch, rows, N), L -> (batch, rows, L)."""

    @torch.library.custom_op(f"milkweed::{name}", mutates_args=())
    def forward(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
        return kernel(a, b, c, length, False)

    @forward.register_fake
    def _(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
        return c.new_empty(*c.shape[:2], length)

    @torch.library.custom_op(f"milkweed::{name}_backward", mutates_args=())
    def backward(
        grad: Tensor, a: Tensor, b: Tensor, c: Tensor, need_a: bool, need_b: bool, need_c: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = gradients(grad, a, b, c, need_a, need_b, need_c, False)
        grad_a, grad_b, grad_c = _wanted(found, (need_a, need_b, need_c))
        return grad_a, grad_b, grad_c

    @backward.register_fake
    def _(
        grad: Tensor, a: Tensor, b: Tensor, c: Tensor, need_a: bool, need_b: bool, need_c: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return gradients_like(a, b, c, need_a, need_b, need_c)

    def all_gradients(
        grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Tensor]:
        a, b, c, _ = inputs
        return backward(grad, a, b, c, *needed)

    register_differentiable(forward, plain, all_gradients)
    return forward


def state_operation(
    name: str,
    state: Callable[[Tensor, Tensor, Tensor], Tensor],
    kernel: Kernel,
    gradients: Gradients,
    plain: Callable[..., Tensor],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Make the custom op of the state: u (batch, rows, L), a (rows, N, N), b (rows, N) -> (batch, rows, N)."""
    # ``kernel`` is that of the same system, for the gradient of u; ``gradients`` are that kernel's, for those of a and
    # b.

    @torch.library.custom_op(f"milkweed::{name}", mutates_args=())
    def forward(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return state(u, a, b)

    @forward.register_fake
    def _(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return u.new_empty(*u.shape[:2], a.shape[-1])

    @torch.library.custom_op(f"milkweed::{name}_backward", mutates_args=())
    def backward(
        grad: Tensor, u: Tensor, a: Tensor, b: Tensor, need_u: bool, need_a: bool, need_b: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # grad · state = sum over l of u_(L-1-l) (grad a^l b): a kernel with the gradient as c.
        grad_u = kernel(a, b, grad, u.shape[-1], True) if need_u else u.new_empty(0)
        if not (need_a or need_b):
            return grad_u, a.new_empty(0), b.new_empty(0)
        found = gradients(u, a, b, grad, need_a, need_b, False, True)
        grad_a, grad_b, _ = _wanted(found, (need_a, need_b, False))
        return grad_u, grad_a, grad_b

    @backward.register_fake
    def _(
        grad: Tensor, u: Tensor, a: Tensor, b: Tensor, need_u: bool, need_a: bool, need_b: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return gradients_like(u, a, b, need_u, need_a, need_b)

    def all_gradients(
        grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
    ) -> Sequence[Tensor]:
        return backward(grad, *inputs, *needed)

    register_differentiable(forward, plain, all_gradients)
    return forward
