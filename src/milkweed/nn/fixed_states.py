"""Steppers whose states keep their size, for runtimes that take one step as a graph with a state in and out."""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from milkweed import ops
from milkweed.nn.filters.causal_monarch import CausalMixerStepper
from milkweed.nn.filters.online_conv import OnlineConv
from milkweed.nn.precision import KeepsFloat32
from milkweed.nn.stepping import Stepper, check_batch_size, check_steps


def fixed_states(stepper: Stepper) -> Stepper:
    """Give a stepper as one whose states keep their size, which every runtime can run one step of as a graph.

    States of state spaces keep their size anyway. Those of long convolutions and causal Monarch mixers grow: they are
    replaced by the last inputs, as many as there are lags, with zeros before the start. A step then costs O(K) per
    channel for K lags instead of O(log² K), and for a causal Monarch mixer as much as the whole sequence.

    Args:
        stepper: Of a layer or of a model; it stays what it is.

    Returns:
        A copy, with states of its own kind: start from its ``initial_state``.

    Raises:
        TypeError: This is no stepper.

    Example:
        >>> layer, u = mw.nn.LongConv(8, l_max=50), torch.randn(2, 3, 8)
        >>> stepper = mw.nn.fixed_states(layer.stepper())
        >>> state = stepper.initial_state(batch_size=2)
        >>> y, after = stepper(u[:, 0], state)
        >>> state.shape == after.shape, torch.allclose(y, layer(u)[:, 0], atol=1e-5)
        (True, True)
    """
    if not isinstance(stepper, Stepper):
        raise TypeError(f"stepper must be a Stepper, as layer.stepper() gives; got {type(stepper).__name__}")
    return cast(Stepper, _replaced(copy.deepcopy(stepper)).eval())


def _replaced(module: nn.Module) -> nn.Module:
    if isinstance(module, OnlineConv):
        return WindowConv(module.kernel)
    if isinstance(module, CausalMixerStepper):
        return WindowMixer(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


class WindowConv(KeepsFloat32, Stepper):
    """A long convolution one step at a time, as a sum over the last inputs.

    Args:
        kernel: (D, K), lags 0 .. K - 1.
    """

    backwards: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("backwards", kernel.flip(-1))

    def initial_state(self, batch_size: int) -> Tensor:
        """Give the state before the first step, (B, D, K) zeros."""
        check_batch_size(batch_size)
        return self.backwards.new_zeros(batch_size, *self.backwards.shape)

    @torch.no_grad()
    def forward(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step u (B, D); sequences may be longer than the kernel, whose further lags are zero."""
        check_steps(u, self.backwards.shape[0])
        state = torch.cat([state[..., 1:], u[..., None].to(state.dtype)], -1)
        return (state * self.backwards).sum(-1).to(u.dtype), state

    @torch.no_grad()
    def read(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take many steps at once, by the convolution: u (B, L, D) -> (B, L, D)."""
        check_steps(u, self.backwards.shape[0], many=True)
        lags = self.backwards.shape[1]
        past = torch.cat([state, u.mT.to(state.dtype)], -1)
        y = ops.fft_conv(past, self.backwards.flip(-1))[..., lags:]
        return y.mT.to(u.dtype), past[..., -lags:]


class WindowState(NamedTuple):
    """The inputs so far of B sequences.

    Attributes:
        inputs: (B, d_model, seq_len), zero from the next step on.
        position: Steps taken, an integer as a tensor.
    """

    inputs: Tensor
    position: Tensor


class WindowMixer(Stepper):
    """A causal Monarch mixer one step at a time, by mixing all that was so far.

    Args:
        stepper: Of the mixer.
    """

    def __init__(self, stepper: CausalMixerStepper) -> None:
        super().__init__()
        self.mixer = stepper.mixer

    def initial_state(self, batch_size: int) -> WindowState:
        """Give the state before the first step."""
        check_batch_size(batch_size)
        inputs = self.mixer.D.new_zeros(batch_size, self.mixer.d_model, self.mixer.seq_len)
        return WindowState(inputs, torch.zeros((), dtype=torch.int64, device=inputs.device))

    @torch.no_grad()
    def forward(self, u: Tensor, state: WindowState) -> tuple[Tensor, WindowState]:
        """Take one step u (B, d_model); there are ``seq_len`` at most."""
        check_steps(u, self.mixer.d_model)
        self._check_room(state, 1)
        steps = torch.arange(self.mixer.seq_len, device=u.device)
        inputs = torch.where(steps == state.position, u[..., None].to(state.inputs.dtype), state.inputs)
        y = self.mixer(inputs.mT).index_select(1, state.position[None])
        return y[:, 0].to(u.dtype), WindowState(inputs, state.position + 1)

    @torch.no_grad()
    def read(self, u: Tensor, state: WindowState) -> tuple[Tensor, WindowState]:
        """Take many steps at once, at the cost of one."""
        check_steps(u, self.mixer.d_model, many=True)
        self._check_room(state, u.shape[1])
        start, end = int(state.position), int(state.position) + u.shape[1]
        inputs = torch.cat([state.inputs[..., :start], u.mT.to(state.inputs.dtype), state.inputs[..., end:]], -1)
        return self.mixer(inputs.mT)[:, start:end].to(u.dtype), WindowState(inputs, state.position + u.shape[1])

    def _check_room(self, state: WindowState, steps: int) -> None:
        # A compiled program does not look at the position.
        if not torch.compiler.is_compiling() and int(state.position) + steps > self.mixer.seq_len:
            raise ValueError(
                f"a CausalMonarchMixer of seq_len={self.mixer.seq_len} has taken {int(state.position)} steps and "
                f"cannot take {steps} more; build it with a larger seq_len"
            )
