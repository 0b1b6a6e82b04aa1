"""Causal convolution with a kernel as long as the sequence, for an input that arrives step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from milkweed import ops
from milkweed._arguments import checked
from milkweed.nn.precision import KeepsFloat32
from milkweed.nn.stepping import Stepper, check_batch_size, check_state, check_steps
from milkweed.ops._common import rows_per_block

# Steps summed directly: below this an FFT costs more than the sum. 16 and 64 measure the same.
_UNIT = 32
# One padded block of inputs; its spectrum and the inverse transform come on top. As in ops.fft_conv.
_BLOCK_BYTES = 4 * 2**20


class ConvState(NamedTuple):
    """The past of B sequences: inputs, and what they add to outputs still to come.

    Attributes:
        position: t, steps taken.
        recent: (B, D, t modulo the unit) inputs since the last full unit.
        blocks: (B, D, p) inputs before those, one block for every power of two p in t // unit * unit, the oldest and
            largest first.
        tiles: (B, D, p) for the first so many blocks: what each adds to the p outputs after it. Those of the other
            blocks are made when an output that they add to is asked for.
        due: (B, D, unit), what all blocks add to the outputs of the present unit; None while a tile is missing.

    Example:
        >>> state = mw.nn.OnlineConv(torch.randn(4, 100)).initial_state(batch_size=2)
        >>> state.position, isinstance(state, mw.nn.ConvState)
        (0, True)
    """

    position: int
    recent: Tensor
    blocks: tuple[Tensor, ...]
    tiles: tuple[Tensor, ...] = ()
    due: Tensor | None = None


def state_after(u: Tensor) -> ConvState:
    """Give the state after the first steps u (B, D, T), T >= 0, without tiles: it consists of them alone."""
    # No kernel is needed for it. The state holds views of u, which is in the kernel's dtype.
    blocks, start, length = [], 0, u.shape[-1]
    while size := _largest_block(0, length - start):
        blocks.append(u[..., start : start + size])
        start += size
    return ConvState(length, u[..., start:], tuple(blocks))


class ConvRecurrence:
    """Convolve one step at a time: T steps cost O(T log² T) in all, as against O(T²) for the sum at every step.

    The past is cut into blocks as the binary digits of t say: 13 steps are blocks of 8, 4 and 1. When a block of p
    inputs is complete, one FFT of length 2p gives its part in the p outputs that follow, a tile. That is as far as it
    has to reach: then it is merged into a block twice as long, whose own tile goes on from there. So output t is the
    sum of one number from the tile of every digit of t, and of ``kernel_0 u_t``; each of the log T levels costs
    O(T log T). Up to 32 steps are summed directly, without tiles.

    A step makes new small tensors and shares the others; of the large ones it replaces those of the digits that change,
    as seldom as the digits do. So no state is changed in place, old states stay valid (to go on from one prompt in
    several ways), and nothing of the size of the past is copied at every step. A single step takes long after a large
    block is complete: O(p log p), once in 2p steps.

    Reading a prompt costs one convolution of it. Its tiles are left to the first step after it, which costs about as
    much once more; steps in several ways from that one state each pay this, from the state after one step they do not.

    Args:
        kernel: (D, K), lags 0 .. K - 1, in float32 or float64; K is also the longest sequence.

    Source:
        Relaxed multiplication (van der Hoeven, 2002) where one factor, the kernel, is known from the start; the tiles
        of Flash Inference (arXiv 2410.12982), kept apart instead of being added up in one array.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = kernel
        self._near = torch.nn.functional.pad(kernel, (0, max(_UNIT - kernel.shape[1], 0)))[:, :_UNIT].flip(-1)
        # By block length; all of them together are twice as long as the kernel.
        self._spectra: dict[int, Tensor] = {}

    def step(self, u: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        """Take one step: u (B, D) and the state before it -> the output (B, D) and the next state."""
        self._check(u, state, 1)
        state, due = self._with_tiles(state)
        recent = torch.cat([state.recent, u[..., None].to(self.kernel.dtype)], -1)
        size = recent.shape[-1]
        y = torch.linalg.vecdot(recent, self._near[:, _UNIT - size :]) + due[..., size - 1]
        return y.to(u.dtype), self._grown(recent, state)

    def extend(self, u: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        """Take L >= 1 steps at once, with gradients: u (B, D, L) -> (B, D, L) and the state after them."""
        length = u.shape[-1]
        self._check(u, state, length)
        # A copy, as the state holds on to it.
        new = u.to(self.kernel.dtype, copy=True)
        if length >= state.position:
            # To convolve all the past anew at most doubles the work, and saves its tiles.
            past = [*state.blocks, state.recent] if state.position else []
            whole = torch.cat([*past, new], -1) if past else new
            return self._convolved(whole)[..., state.position :].to(u.dtype), state_after(whole)
        outputs, taken = [], 0
        while taken < length:
            state, due = self._with_tiles(state)
            left, filled = length - taken, state.recent.shape[-1]
            # The largest block that the digits of t have room for, or what is left of the present unit.
            size = _largest_block(state.position, left) or min(left, _UNIT - filled)
            piece = new[..., taken : taken + size]
            if size < _UNIT:
                recent = torch.cat([state.recent, piece], -1)
                y = self._convolved(recent)[..., filled:] + due[..., filled : filled + size]
                state = self._grown(recent, state)
            else:
                y = sum(_slices(state.position, state.tiles, size), self._convolved(piece))
                state = self._pushed(piece, state)
            outputs.append(y)
            taken += size
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return y.to(u.dtype), state

    def _check(self, u: Tensor, state: ConvState, steps: int) -> None:
        check_state(state, ConvState, lambda own: own.recent, u, self.kernel.shape[0])
        if state.position + steps > self.kernel.shape[1]:
            raise ValueError(
                f"a sequence has at most l_max={self.kernel.shape[1]} steps; {state.position} were taken, and {steps} "
                "more were given; build the layer with a larger l_max"
            )

    def _convolved(self, piece: Tensor) -> Tensor:
        return ops.fft_conv(piece, self.kernel[:, : piece.shape[-1]])

    def _grown(self, recent: Tensor, state: ConvState) -> ConvState:
        """The state after a piece that ends within the present unit, or with it."""
        if recent.shape[-1] == _UNIT:
            return self._pushed(recent, state._replace(recent=recent[..., :0]))
        position = state.position + recent.shape[-1] - state.recent.shape[-1]
        return state._replace(position=position, recent=recent)

    def _pushed(self, block: Tensor, state: ConvState) -> ConvState:
        """The state after a whole block: equal blocks merge as a digit carries, and the sum has no tile yet."""
        position = state.position - state.position % _UNIT + block.shape[-1]
        blocks, carried = list(state.blocks), [block]
        while blocks and blocks[-1].shape[-1] == sum(each.shape[-1] for each in carried):
            carried.insert(0, blocks.pop())
        block = torch.cat(carried, -1) if len(carried) > 1 else block
        return ConvState(position, state.recent, (*blocks, block), state.tiles[: len(blocks)])

    def _with_tiles(self, state: ConvState) -> tuple[ConvState, Tensor]:
        """The same state with every tile, and what is due."""
        if state.due is not None:
            return state, state.due
        tiles = (*state.tiles, *(self._tile(block) for block in state.blocks[len(state.tiles) :]))
        start = state.position - state.position % _UNIT
        due = sum(_slices(start, tiles, _UNIT), state.recent.new_zeros(*state.recent.shape[:2], _UNIT))
        return state._replace(tiles=tiles, due=due), due

    def _tile(self, block: Tensor) -> Tensor:
        """What p inputs add to the p outputs after them: the half of a cyclic convolution that nothing wraps into."""
        batch, channels, size = block.shape
        if batch == 0:
            return torch.zeros_like(block)  # FFTs refuse to transform nothing.
        row_bytes = 2 * size * batch * block.element_size()
        step = rows_per_block(channels, row_bytes, block.device, budget=_BLOCK_BYTES)
        spectrum = self._spectrum(size)
        parts = []
        for rows in (slice(c, c + step) for c in range(0, channels, step)):
            product = torch.fft.rfft(block[:, rows], 2 * size) * spectrum[rows]
            parts.append(torch.fft.irfft(product, 2 * size)[..., size:])
        return torch.cat(parts, 1)

    def _spectrum(self, size: int) -> Tensor:
        if size not in self._spectra:
            self._spectra[size] = torch.fft.rfft(self.kernel[:, : 2 * size], 2 * size)
        return self._spectra[size]


class OnlineConv(KeepsFloat32, Stepper):
    """A long convolution one step at a time, see `ConvRecurrence`: T steps cost O(T log² T) in all.

    Args:
        kernel: (D, K), lags 0 .. K - 1, in float32 or float64; K is also the longest sequence.

    Example:
        >>> stepper, u = mw.nn.OnlineConv(torch.randn(4, 50)), torch.randn(2, 50, 4)
        >>> state, outputs = stepper.initial_state(batch_size=2), []
        >>> for t in range(50):
        ...     y, state = stepper(u[:, t], state)
        ...     outputs.append(y)
        >>> torch.allclose(torch.stack(outputs, 1).mT, mw.ops.fft_conv(u.mT, stepper.kernel), atol=1e-3)
        True
    """

    kernel: Tensor

    @checked
    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel)
        self._recurrence: ConvRecurrence | None = None
        self.register_load_state_dict_post_hook(_forget_recurrence)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._recurrence = None
        return super()._apply(fn, recurse)

    @property
    def recurrence(self) -> ConvRecurrence:
        """The convolution, whose spectra are made once."""
        if self._recurrence is None:
            self._recurrence = ConvRecurrence(self.kernel)
        return self._recurrence

    def initial_state(self, batch_size: int) -> ConvState:
        """Give the state before the first step, which holds no inputs."""
        check_batch_size(batch_size)
        return state_after(self.kernel.new_zeros(batch_size, self.kernel.shape[0], 0))

    @torch.no_grad()
    def forward(self, u: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        """Take one step, without gradients.

        Args:
            u: (B, D).
            state: The state before it.

        Returns:
            The output (B, D) and the next state.

        Raises:
            ValueError: A shape does not fit, or the kernel's last lag is reached.
        """
        check_steps(u, self.kernel.shape[0])
        return self.recurrence.step(u, state)

    @torch.no_grad()
    def read(self, u: Tensor, state: ConvState) -> tuple[Tensor, ConvState]:
        """Take many steps at once, without gradients.

        Args:
            u: (B, L, D).
            state: The state before them.

        Returns:
            The outputs (B, L, D) and the state after the last step.

        Raises:
            ValueError: A shape does not fit, or the kernel has not so many lags.
        """
        check_steps(u, self.kernel.shape[0], many=True)
        y, state = self.recurrence.extend(u.transpose(1, 2), state)
        return y.transpose(1, 2), state


def _forget_recurrence(stepper: nn.Module, _: object) -> None:
    assert isinstance(stepper, OnlineConv)
    stepper._recurrence = None


def _largest_block(position: int, steps: int) -> int:
    """The largest power of two that divides the position and is no more than the steps; 0 for less than a unit."""
    size = 1 << steps.bit_length() >> 1
    if position:
        size = min(size, position & -position)
    return size if size >= _UNIT else 0


def _slices(position: int, tiles: Sequence[Tensor], size: int) -> list[Tensor]:
    """What each block adds to the next outputs, as many as ``size``, which divides the position."""
    starts = [position % tile.shape[-1] for tile in tiles]
    return [tile[..., start : start + size] for tile, start in zip(tiles, starts, strict=True)]
