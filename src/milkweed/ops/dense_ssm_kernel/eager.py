"""Dense state space kernels as matrix products by repeated squaring; README.md derives them.

Powers are held less the identity, d_k = a^(2^k) - 1, and vectors are rows: a^j b is the row b (a^T)^j.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import register_differentiable, rows_per_block, slices, widest_dtype, without_autocast
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.dense_ssm_kernel._operations import gradients_like, kernel_operation, state_operation

# Powers, vectors and products of one block of channels.
_BLOCK_BYTES = 8 * 2**20
# Vectors that are worth a pass over a power; fewer are doubled first.
_LEAST_VECTORS = 8
_PRECISE_SQUARES = 2


class _Plan:
    """The split of the lags, l = i * inner + j with i < outer = strides * 2^doublings, and the powers it takes."""

    def __init__(self, batch: int, modes: int, length: int) -> None:
        self.batch, self.modes, self.length = batch, modes, length
        bits = (length - 1).bit_length()
        # As many columns a^j b as there are rows c (a^inner)^i in the whole batch: √(L * batch).
        self.inner_bits = min((bits + max(batch - 1, 0).bit_length()) // 2, bits)
        self.inner = 1 << self.inner_bits
        blocks = -(-length // self.inner)
        self.doublings = 0
        while 1 << self.doublings < blocks and batch << self.doublings < _LEAST_VECTORS:
            self.doublings += 1
        self.strides = -(-blocks >> self.doublings)
        self.outer = self.strides << self.doublings
        # One for each doubling of columns and rows, one for the strides.
        self.powers = self.inner_bits + self.doublings + (self.strides > 1)

    def row_blocks(self, rows: int, like: Tensor) -> Iterator[slice]:
        vectors = self.inner + self.batch * self.outer
        touched = self.powers * self.modes**2 + 2 * self.modes * vectors + 2 * self.batch * self.length
        step = rows_per_block(rows, touched * like.element_size(), like.device, budget=_BLOCK_BYTES)
        return slices(rows, step)

    def fold(self, lags: Tensor) -> Tensor:
        """(batch, rows, L) to (rows, outer * batch, inner)."""
        padded = F.pad(lags, (0, self.outer * self.inner - self.length))
        return padded.unflatten(2, (self.outer, self.inner)).permute(1, 2, 0, 3).flatten(1, 2)

    def unfold(self, product: Tensor) -> Tensor:
        """(rows, outer * batch, inner) to (batch, rows, L)."""
        return product.unflatten(1, (self.outer, self.batch)).permute(2, 0, 1, 3).flatten(2)[..., : self.length]

    # Forward and adjoint of both sides. Powers from `inner_bits` on belong to the rows; an adjoint gives its powers'
    # gradients too, in order, if the vectors of the forward pass are given.

    def columns(self, powers: Sequence[Tensor], b: Tensor) -> Tensor:
        """The columns a^j b for j < inner: (rows, N) to (rows, inner, N)."""
        columns = b[:, None]
        for d in powers[: self.inner_bits]:
            columns = _double(columns, d.mT)
        return columns

    def columns_adjoint(
        self, powers: Sequence[Tensor], grad: Tensor, columns: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        # [V, V + d V] was made of V: ∂V = ∂V₁ + ∂V₂ + dᵀ ∂V₂ and ∂d = ∂V₂ Vᵀ, here with vectors as rows.
        power_grads = []
        for d in reversed(powers[: self.inner_bits]):
            low, high = grad.chunk(2, 1)
            if columns is not None:
                power_grads.append(torch.bmm(high.mT, columns[:, : low.shape[1]]))
            grad = torch.baddbmm(low + high, high, d)
        return grad[:, 0], power_grads[::-1]

    def rows(self, powers: Sequence[Tensor], c: Tensor) -> Tensor:
        """The rows c (a^inner)^i for i < outer: (batch, rows, N) to (rows, outer * batch, N)."""
        rows = c.transpose(0, 1)
        for d in powers[self.inner_bits : self.inner_bits + self.doublings]:
            rows = _double(rows, d)
        parts = [rows]
        for _ in range(self.strides - 1):
            stride = torch.baddbmm(parts[-1], parts[-1], powers[-1])
            parts.append(_without_tiny(stride, torch.finfo(c.dtype).tiny))
        return torch.cat(parts, 1)

    def rows_adjoint(self, powers: Sequence[Tensor], grad: Tensor, rows: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        # The strides are undone first. Group i was made of group i - 1, so the adjoint t_(i-1) = g_(i-1) + t_i (I + d)ᵀ
        # runs backwards, and all groups share one power: ∂d = Σ R_(i-1)ᵀ t_i is one product.
        power_grads = []
        *earlier, last = grad.split(self.batch << self.doublings, 1)
        totals = [last]
        for part in reversed(earlier):
            totals.append((part + totals[-1]).baddbmm_(totals[-1], powers[-1].mT))
        if rows is not None and self.strides > 1:
            power_grads.append(torch.bmm(rows[:, : -last.shape[1]].mT, torch.cat(totals[-2::-1], 1)))
        grad = totals[-1]
        for d in reversed(powers[self.inner_bits : self.inner_bits + self.doublings]):
            low, high = grad.chunk(2, 1)
            if rows is not None:
                power_grads.append(torch.bmm(rows[:, : low.shape[1]].mT, high))
            grad = torch.baddbmm(low + high, high, d.mT)
        return grad.transpose(0, 1), power_grads[::-1]

    def flops(self, rows: int, squarings: int, columns: int, vectors: int, products: int) -> int:
        """Operations of so many passes through each stage."""
        modes = self.modes
        return (2 * rows * modes) * (
            squarings * max(self.powers - 1, 0) * modes**2
            + columns * (self.inner - 1) * modes
            + vectors * (self.outer - 1) * self.batch * modes
            + products * self.outer * self.batch * self.inner
        )


def _double(vectors: Tensor, d: Tensor) -> Tensor:
    return torch.cat([vectors, torch.baddbmm(vectors, vectors, d)], 1)


def _without_tiny(x: Tensor, least: float) -> Tensor:
    """Set decayed entries of a new tensor to zero: denormal numbers make products take twice the time."""
    values = x.detach()  # the derivative stays that of x: an entry that is zero may still learn
    torch.ops.aten.hardshrink.out(values, least, out=values)
    return x


def precise_powers(a: Tensor, count: int) -> list[Tensor]:
    """Take the first powers a^(2^k) - 1, those that need more than float32: ``count`` or fewer, in a's dtype."""
    # Modes near -1 are slow only once squared, so the first squares are taken in float64, where the device has it.
    wide = a.to(widest_dtype(a))
    powers = [wide - torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)]
    while len(powers) < min(count, 1 + _PRECISE_SQUARES):
        d = powers[-1]
        powers.append(torch.baddbmm(d, d, d, beta=2))
    return [d.to(a.dtype) for d in powers]


def _powers(a: Tensor, count: int) -> list[Tensor]:
    """a^(2^k) - 1 for k < count, by (1 + d)² - 1 = 2 d + d²: without the identity slow modes keep their digits."""
    least = torch.finfo(a.dtype).tiny ** 0.5  # products of two entries stay normal
    powers = precise_powers(a, count)
    while len(powers) < count:
        d = powers[-1]
        powers.append(_without_tiny(torch.baddbmm(d, d, d, beta=2), least))
    return powers


def _powers_adjoint(powers: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of a, from that of each power."""
    # d_(k+1) = 2 d_k + d_k²: ∂d_k += 2 ∂d_(k+1) + ∂d_(k+1) d_kᵀ + d_kᵀ ∂d_(k+1).
    total = grads[-1]
    for d, grad in zip(powers[-2::-1], grads[-2::-1], strict=True):
        total = torch.baddbmm(grad, total, d.mT).baddbmm_(d.mT, total).add_(total, alpha=2)
    return total


def _kernel_of_block(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """The kernel in differentiable functions, whatever the number of rows."""
    with without_autocast(a):
        plan = _Plan(c.shape[0], a.shape[-1], length)
        powers = _powers(a, plan.powers)
        return plan.unfold(torch.bmm(plan.rows(powers, c), plan.columns(powers, b).mT))


def _kernel(a: Tensor, b: Tensor, c: Tensor, length: int, reverse: bool = False) -> Tensor:
    batch, rows, modes = c.shape
    out = on_huge_pages(c.new_empty(batch, rows, length))
    for block in _Plan(batch, modes, length).row_blocks(rows, c):
        out[:, block] = _kernel_of_block(a[block], b[block], c[:, block], length)
    return out.flip(-1) if reverse else out


def _state_of_block(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The state in differentiable functions: the transpose of c -> kernel, applied to the reversed signal."""
    with without_autocast(a):
        plan = _Plan(u.shape[0], a.shape[-1], u.shape[-1])
        powers = _powers(a, plan.powers)
        grad = torch.bmm(plan.fold(u.flip(-1)), plan.columns(powers, b))
        return plan.rows_adjoint(powers, grad, None)[0]


def _state(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    batch, rows, length = u.shape
    out = u.new_empty(batch, rows, a.shape[-1])
    for block in _Plan(batch, a.shape[-1], length).row_blocks(rows, u):
        out[:, block] = _state_of_block(u[:, block], a[block], b[block])
    return out


def _gradients(
    g: Tensor, a: Tensor, b: Tensor, c: Tensor, need_a: bool, need_b: bool, need_c: bool, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum(g * kernel(a, b, c)); those not needed are empty."""
    g = g.flip(-1) if reverse else g
    batch, rows, length = g.shape
    plan = _Plan(batch, a.shape[-1], length)
    grad_a, grad_b, grad_c = gradients_like(a, b, c, need_a, need_b, need_c)
    for block in plan.row_blocks(rows, g):
        with without_autocast(g):
            powers = _powers(a[block], plan.powers)
            folded = plan.fold(g[:, block])
            columns = plan.columns(powers, b[block]) if need_a or need_c else None
            vectors = plan.rows(powers, c[:, block]) if need_a or need_b else None
            power_grads: list[Tensor] = []
            if vectors is not None:
                grad = torch.bmm(folded.mT, vectors)
                found, power_grads = plan.columns_adjoint(powers, grad, columns if need_a else None)
                if need_b:
                    grad_b[block] = found
            if columns is not None:
                grad = torch.bmm(folded, columns)
                found, more = plan.rows_adjoint(powers, grad, vectors if need_a else None)
                power_grads += more
                if need_c:
                    grad_c[:, block] = found
            if need_a:
                grad_a[block] = _powers_adjoint(powers, power_grads) if power_grads else 0
    return grad_a, grad_b, grad_c


def _bits(steps: Tensor) -> int:
    return int(steps.max()).bit_length() if len(steps) else 0


def _taken(steps: Tensor, bit: int) -> Tensor:
    return ((steps >> bit) & 1).bool()[:, None]


def _plain_powers(a: Tensor, count: int) -> list[Tensor]:
    """a^(2^k) for k < count in float64, which has the digits to spare that squaring costs slow modes."""
    # Not less the identity: a power that has decayed would be a difference of two ones.
    wide = widest_dtype(a)
    least = torch.finfo(wide).tiny ** 0.5  # products of two entries stay normal
    powers = [a.to(wide)]
    while len(powers) < count:
        powers.append(_without_tiny(torch.bmm(powers[-1], powers[-1]), least))
    return powers[:count]


def _moved(x: Tensor, power: Tensor, steps: Tensor, bit: int) -> Tensor:
    return torch.where(_taken(steps, bit), torch.bmm(x, power.mT), x)


def _advance_of_block(x: Tensor, a: Tensor, steps: Tensor) -> Tensor:
    """The later state in differentiable functions: x times the powers that are the bits of ``steps``."""
    with without_autocast(a):
        state = x.transpose(0, 1).to(widest_dtype(a))
        for bit, power in enumerate(_plain_powers(a, _bits(steps))):
            state = _moved(state, power, steps, bit)
        return state.transpose(0, 1).to(x.dtype)


def _advance_gradients(g: Tensor, x: Tensor, a: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of sum(g * advance(x, a, steps))."""
    with without_autocast(g):
        powers = _plain_powers(a, _bits(steps))
        states, power_grads = [x.transpose(0, 1).to(widest_dtype(a))], []
        for bit, power in enumerate(powers[:-1]):
            states.append(_moved(states[-1], power, steps, bit))
        grad = g.transpose(0, 1).to(widest_dtype(a))
        for bit, power in reversed(list(enumerate(powers))):
            taken = _taken(steps, bit)
            power_grads.append(torch.bmm(torch.where(taken, grad, 0).mT, states[bit]))
            grad = torch.where(taken, torch.bmm(grad, power), grad)
        total = power_grads[0] if powers else torch.zeros_like(a)
        for power, power_grad in zip(powers[-2::-1], power_grads[1:], strict=True):
            total = torch.baddbmm(power_grad, total, power.mT).baddbmm_(power.mT, total)
        return grad.transpose(0, 1).to(x.dtype), total.to(a.dtype)


def _advance_blocks(x: Tensor, steps: Tensor) -> Iterator[slice]:
    batch, rows, modes = x.shape
    touched = (_bits(steps) + 1) * modes * (modes + batch)
    step = rows_per_block(rows, touched * 8, x.device, budget=_BLOCK_BYTES)
    return slices(rows, step)


def _gradient_flops(plan: _Plan, rows: int, need_a: bool, need_b: bool, need_c: bool) -> int:
    left, right = int(need_a or need_c), int(need_a or need_b)
    both = left + right
    return plan.flops(rows, 1 + 2 * need_a, both + need_a, both + need_a, both)


dense_ssm_kernel = kernel_operation("dense_ssm_kernel", _kernel, _gradients, _kernel_of_block)
dense_ssm_state = state_operation("dense_ssm_state", _state, _kernel, _gradients, _state_of_block)


@torch.library.custom_op("milkweed::dense_ssm_advance", mutates_args=())
def dense_ssm_advance(x: Tensor, a: Tensor, steps: Tensor) -> Tensor:
    """Multiply x (batch, rows, N) by a (rows, N, N) as often as ``steps`` (batch,) says: (batch, rows, N)."""
    out = x.new_empty(x.shape)
    for block in _advance_blocks(x, steps):
        out[:, block] = _advance_of_block(x[:, block], a[block], steps)
    return out


@dense_ssm_advance.register_fake
def _(x: Tensor, a: Tensor, steps: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("milkweed::dense_ssm_advance_backward", mutates_args=())
def _advance_backward(grad: Tensor, x: Tensor, a: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_a = x.new_empty(x.shape), a.new_empty(a.shape)
    for block in _advance_blocks(x, steps):
        grad_x[:, block], grad_a[block] = _advance_gradients(grad[:, block], x[:, block], a[block], steps)
    return grad_x, grad_a


@_advance_backward.register_fake
def _(grad: Tensor, x: Tensor, a: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape)


def _advance_all_gradients(
    grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]
) -> Sequence[Tensor]:
    x, a, steps = inputs
    return *_advance_backward(grad, x, a, steps), steps


register_differentiable(dense_ssm_advance, _advance_of_block, _advance_all_gradients)


@register_flop_formula(torch.ops.milkweed.dense_ssm_kernel)
def _kernel_flops(a_shape: Any, b_shape: Any, c_shape: Any, length: int, **kwargs: Any) -> int:
    batch, rows, modes = (int(size) for size in c_shape)
    return _Plan(batch, modes, int(length)).flops(rows, 1, 1, 1, 1)


@register_flop_formula(torch.ops.milkweed.dense_ssm_kernel_backward)
def _kernel_backward_flops(
    grad_shape: Any, a_shape: Any, b_shape: Any, c_shape: Any, need_a: bool, need_b: bool, need_c: bool, **kwargs: Any
) -> int:
    batch, rows, length = (int(size) for size in grad_shape)
    return _gradient_flops(_Plan(batch, int(a_shape[-1]), length), rows, need_a, need_b, need_c)


@register_flop_formula(torch.ops.milkweed.dense_ssm_state)
def _state_flops(u_shape: Any, a_shape: Any, b_shape: Any, **kwargs: Any) -> int:
    return _kernel_flops(a_shape, b_shape, (*u_shape[:2], a_shape[-1]), u_shape[2])


@register_flop_formula(torch.ops.milkweed.dense_ssm_state_backward)
def _state_backward_flops(
    grad_shape: Any, u_shape: Any, a_shape: Any, b_shape: Any, need_u: bool, need_a: bool, need_b: bool, **kwargs: Any
) -> int:
    flops = _kernel_flops(a_shape, b_shape, grad_shape, u_shape[2]) * int(need_u)
    if need_a or need_b:
        flops += _kernel_backward_flops(u_shape, a_shape, b_shape, grad_shape, need_a, need_b, False)
    return flops
