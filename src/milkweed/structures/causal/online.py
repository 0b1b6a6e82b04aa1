"""The causal product one step at a time, exactly, in O(√L log L) amortised steps of work for two digits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed.structures.causal.base import CausalBasis


class RowState(NamedTuple):
    """What a triangular map knows of a sequence so far; a row is one value of the highest digit, W steps."""

    done: Tensor  # (B, H, r W), the sequence in its finished rows
    row: Tensor  # (B, H, i), the sequence in the row that is being filled
    inner: Tensor  # (B, H, i), after the highest digit's blocks
    past: Tensor  # (B, H, W), what finished rows give to this one there
    echo: Tensor  # (B, H, W), what the row before gives to coefficients


class ConvolutionState(NamedTuple):
    """What a product of polynomials knows of one of them so far."""

    done: Tensor  # (B, H, r W), its coefficients in finished rows
    row: Tensor  # (B, H, i), in the row that is being filled
    past: Tensor  # (B, H, W), what finished rows give to this one


class ProductState(NamedTuple):
    """The state of a `CausalStream`, the parts in the order in which a step passes them.

    Args:
        inputs: Of M₂.
        convolution: Of the product.
        outputs: Of M₀.
    """

    inputs: RowState
    convolution: ConvolutionState
    outputs: RowState


class CausalStream:
    """`causal_product` as a recurrence over steps.

    Time is cut into rows of W = b_0 ⋯ b_{p-2} steps. At the start of a row everything that finished rows give to it is
    computed at once, in O(t log t); within the row a step costs O(W log W). Two digits have W ≈ √L: O(√L log L) per
    step. The state holds what was read and written, O(t) numbers per channel.

    Args:
        kernel: (H, L), in the precision of the computation, float32 at least, as are all factors.
        output_basis: M₀.
        kernel_basis: M₁.
        input_basis: M₂; the stream can take its n steps less the output's ``lead``.
    """

    def __init__(
        self, kernel: Tensor, output_basis: CausalBasis, kernel_basis: CausalBasis, input_basis: CausalBasis
    ) -> None:
        self._channels = kernel.shape[0]
        padded = F.pad(kernel, (0, kernel_basis.length - kernel.shape[1]))
        self._kernel = kernel_basis.to_polynomial(padded[None])[0]
        self._input, self._output = _Rows(input_basis), _Rows(output_basis)
        self._like = kernel

    def state_after(self, u: Tensor) -> tuple[Tensor, ProductState]:
        """Read a whole sequence at once.

        Args:
            u: (B, H, T), T >= 0.

        Returns:
            The outputs (B, H, T) and the state after them.
        """
        basis, lead = self._input.basis, self._output.basis.lead
        expanded = basis.to_polynomial(u)

        def product(expanded: Tensor) -> Tensor:
            found = basis.multiply(self._kernel[:, : u.shape[-1]], expanded) if u.shape[-1] else expanded
            return self._output.basis.from_polynomial(F.pad(found, (lead, 0)))[..., lead:]

        y = basis.causally(product, expanded)
        return y, ProductState(self._input.state(u), self._past(expanded), self._output.state(F.pad(y, (lead, 0))))

    def step(self, u: Tensor, state: ProductState) -> tuple[Tensor, ProductState]:
        """Take one step.

        Args:
            u: (B, H).
            state: From ``state_after`` or the last step.

        Returns:
            The output (B, H) and the next state.
        """
        expanded, inputs = self._input.expand(u, state.inputs)
        product, convolution = self._convolve(expanded, state.convolution)
        y, outputs = self._output.solve(product, state.outputs)
        return y, ProductState(inputs, convolution, outputs)

    def _convolve(self, expanded: Tensor, state: ConvolutionState) -> tuple[Tensor, ConvolutionState]:
        row = torch.cat([state.row, expanded[..., None]], -1)
        filled = row.shape[-1]
        here = self._input.basis.multiply(self._kernel[:, :filled], row)[..., -1]
        product = state.past[..., filled - 1] + here
        if filled < self._input.width:
            return product, state._replace(row=row)
        return product, self._past(torch.cat([state.done, row], -1))

    def _past(self, expanded: Tensor) -> ConvolutionState:
        width, basis = self._input.width, self._input.basis
        start = expanded.shape[-1] // width * width
        done, row = expanded[..., :start], expanded[..., start:]
        past = expanded.new_zeros(*expanded.shape[:2], width)
        if 0 < start < basis.length:
            past = basis.multiply(self._kernel[:, : start + width], F.pad(done, (0, width)))[..., start:]
        return ConvolutionState(done, row, past)


class _Rows:
    """A basis split at its highest digit: blocks across rows, one dense triangular map within a row."""

    # `CausalBasis.to_polynomial` applies the highest digit first, then the lower ones, which never leave a row. So step
    # i of row r is inner_i = Σ_(s<r) top[i, r, s] x_(s,i) + top[i, r, r] x_(r,i), where the sum over finished rows is
    # ``past``, and coefficient i = scale Σ_(j≤i) low[i, j] inner_j + echo_i. `expand` reads this from x to the
    # coefficient, `solve` back.

    def __init__(self, basis: CausalBasis) -> None:
        *low, top = basis.factors
        self.basis, self.width = basis, math.prod(basis.digits[:-1])
        # (heads, W, rows, rows), the position within a row in time's order.
        self._top = top.permute(0, *range(len(low), 0, -1), -2, -1).flatten(1, -3) if low else top[:, None]
        unit = torch.eye(self.width, device=top.device, dtype=top.dtype)
        columns = unit[:, None].expand(-1, basis.heads, -1)
        below = type(basis)(tuple(low)).to_polynomial(columns) if low else columns
        self._low = below.permute(1, 2, 0)

    def state(self, x: Tensor) -> RowState:
        """The state after a sequence (B, H, T)."""
        start = x.shape[-1] // self.width * self.width
        row, done, rest = start // self.width, x[..., :start], x[..., start:]
        past = echo = x.new_zeros(*x.shape[:2], self.width)
        if 0 < row < self.basis.digits[-1]:
            past = self._across(done, row)
            own = self._diagonal(row - 1)[..., None, :] * self._by_head(done[..., -self.width :])
            before = own + self._by_head(self._across(done[..., : -self.width], row - 1))
            echo = self.basis.echo((before @ self._low.mT).flatten(1, 2))
        inner = rest
        if rest.shape[-1]:
            here = self._diagonal(row)[..., None, : rest.shape[-1]] * self._by_head(rest)
            inner = here.flatten(1, 2) + past[..., : rest.shape[-1]]
        return RowState(done, rest, inner, past, echo)

    def expand(self, value: Tensor, state: RowState) -> tuple[Tensor, RowState]:
        """The next coefficient (B, H) from the next step of the sequence."""
        i, scale, low, diagonal = self._at(state, value)
        inner = state.past[..., i] + diagonal * value
        coefficient = (state.inner * low[:, :-1]).sum(-1) + low[:, -1] * inner
        return scale * coefficient + state.echo[..., i], self._next(state, value, inner)

    def solve(self, coefficient: Tensor, state: RowState) -> tuple[Tensor, RowState]:
        """The next step (B, H) of the sequence from the next coefficient."""
        i, scale, low, diagonal = self._at(state, coefficient)
        # The same three equations from the last to the first; every one is linear in the one number that is new.
        own = (coefficient - state.echo[..., i]) / scale
        inner = (own - (state.inner * low[:, :-1]).sum(-1)) / low[:, -1]
        value = (inner - state.past[..., i]) / diagonal
        return value, self._next(state, value, inner)

    def _at(self, state: RowState, like: Tensor) -> tuple[int, float, Tensor, Tensor]:
        """Position i within the row, the coefficient's scale, row i of the map within rows, the block's diagonal."""
        i, row = state.row.shape[-1], state.done.shape[-1] // self.width
        shared = like.shape[1] // self.basis.heads
        low = self._low[:, i, : i + 1].repeat_interleave(shared, 0)
        return i, self.basis.scale(row, i), low, self._diagonal(row)[:, i].repeat_interleave(shared, 0)

    def _next(self, state: RowState, value: Tensor, inner: Tensor) -> RowState:
        row = torch.cat([state.row, value[..., None]], -1)
        if row.shape[-1] == self.width:
            return self.state(torch.cat([state.done, row], -1))
        return state._replace(row=row, inner=torch.cat([state.inner, inner[..., None]], -1))

    def _across(self, done: Tensor, row: int) -> Tensor:
        """What the rows before give to a row, (B, H, row W) to (B, H, W)."""
        rows = self._by_head(done).unflatten(-1, (row, self.width))
        return torch.einsum("hwr,bhcrw->bhcw", self._top[:, :, row, :row], rows).flatten(1, 2)

    def _diagonal(self, row: int) -> Tensor:
        """(heads, W)."""
        return self._top[:, :, row, row]

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.basis.heads, -1))
