"""What state space layers share: everything but where their system comes from."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed import ops, ssm
from milkweed._suggest import unknown
from milkweed.nn.lengths import check_lengths, valid_steps
from milkweed.nn.options import check_kind, check_names
from milkweed.nn.stepping import Stepper
from milkweed.nn.systems import KernelSystem, LinearSystem
from milkweed.ops._common import autocast_dtype

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "none": lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}
OUTPUTS = ("glu", "linear", "none")


class MixingLayer(nn.Module):
    """What follows a filter with ``channels`` readouts y per channel: ``mix(gate(u) * activation(y))``.

    Args:
        d_model: H, channels in and out.
        channels: Readouts per channel (heads), mixed by the output layer.
        activation: After the filter.
        gate: Multiply by ``silu`` of a linear layer of the input, before the output layer.
        output: ``"glu"``, ``"linear"``, or ``"none"`` for channels that do not mix.
        dropout: Probability, after the activation.
        tie_dropout: Drop a channel for a whole sequence instead of single steps.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int,
        activation: str,
        gate: bool,
        output: str,
        dropout: float,
        tie_dropout: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_kind(int, d_model=d_model, channels=channels)
        check_kind(str, activation=activation, output=output)
        check_kind(bool, gate=gate, tie_dropout=tie_dropout)
        check_kind(float, dropout=dropout)
        for name, value in (("d_model", d_model), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        for name, given, known in (("activation", activation, ACTIVATIONS), ("output", output, OUTPUTS)):
            if given not in known:
                raise ValueError(unknown(name, given, known))
        if output == "none" and channels > 1:
            raise ValueError(f"output='none' cannot mix channels={channels} readouts; use output='linear'")
        self.d_model, self.channels = d_model, channels
        self.activation, self.mixing, self.tie_dropout = activation, output, tie_dropout
        self.dropout = nn.Dropout(dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate = nn.Linear(d_model, channels * d_model, **factory) if gate else None
        widths = {"glu": 2 * d_model, "linear": d_model}
        self.output = nn.Linear(channels * d_model, widths[output], **factory) if output != "none" else None
        self._factory = factory

    def _empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, **self._factory))

    def _reset_mixing(self) -> None:
        """Draw the gate and the output layer anew."""
        for layer in (self.output, self.gate):
            if layer is not None:
                layer.reset_parameters()

    def _mix(self, y: Tensor, u: Tensor) -> Tensor:
        """(..., L, channels H) after the filter and the input (..., L, H) to the layer's output (..., L, H)."""
        y = ACTIVATIONS[self.activation](y)
        if self.gate is not None:
            y = y * F.silu(self.gate(u))
        y = y * self.dropout(torch.ones_like(y[..., :1, :])) if self.tie_dropout else self.dropout(y)
        if self.output is None:
            return y
        mixed = self.output(y)
        return F.glu(mixed, -1) if self.mixing == "glu" else mixed


class StateSpaceLayer(MixingLayer, ABC):
    """``y = mix(gate(u) * activation(K * u + D u))``, where K are the kernels of one linear system per channel.

    A subclass creates the parameters of its system (with ``_empty``), calls ``reset_parameters`` and defines
    ``system`` and ``_reset_system``.

    Args:
        d_model: H, channels in and out.
        channels: Readouts per channel (heads), mixed by the output layer.
        bidirectional: Convolve with a second kernel over the future.
        dt_min: Smallest initial step; 1/dt_min is the longest memory at the start, in steps.
        dt_max: Largest initial step.
        activation: After the convolution.
        gate: Multiply by ``silu`` of a linear layer of the input, before the output layer.
        output: ``"glu"``, ``"linear"``, or ``"none"`` for channels that do not mix.
        dropout: Probability, after the activation.
        tie_dropout: Drop a channel for a whole sequence instead of single steps.
        frozen: Names of parameters of the system that are not trained.
        device: Where parameters live.
        dtype: Their dtype; kernels are computed in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.
    """

    # Parameters that want their own learning rate and no weight decay.
    ssm_parameters: tuple[str, ...] = ()

    log_dt: nn.Parameter
    D: nn.Parameter  # (channels, H)

    def __init__(
        self,
        d_model: int,
        *,
        channels: int,
        bidirectional: bool,
        dt_min: float,
        dt_max: float,
        activation: str,
        gate: bool,
        output: str,
        dropout: float,
        tie_dropout: bool,
        frozen: Sequence[str],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_kind(bool, bidirectional=bidirectional)
        check_kind(float, dt_min=dt_min, dt_max=dt_max)
        check_names(frozen=frozen)
        ssm.log_timescale(0, dt_min, dt_max)  # refuses a bad range before anything is allocated
        super().__init__(
            d_model,
            channels=channels,
            activation=activation,
            gate=gate,
            output=output,
            dropout=dropout,
            tie_dropout=tie_dropout,
            device=device,
            dtype=dtype,
        )
        self.bidirectional, self.dt_min, self.dt_max, self.frozen = bidirectional, dt_min, dt_max, tuple(frozen)

    @abstractmethod
    def system(self, rate: float = 1.0) -> KernelSystem:
        """The discrete system that the parameters stand for, in float32 at least; gradients flow through it.

        Args:
            rate: Step length relative to training.

        Returns:
            One system per channel with ``channels`` readouts, twice as many for a bidirectional layer: first those
            over the past, then those over the future.
        """

    @abstractmethod
    def _reset_system(self) -> None:
        """Draw the parameters of the system anew."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        self._reset_system()
        self._reset_mixing()

    def parameter_roles(self) -> dict[str, str]:
        """Name the parameters that want their own learning rate and no weight decay.

        Returns:
            Parameter name to ``"ssm"``; the skip D is a vector per head and not decayed either.
        """
        roles = {name: "ssm" for name in self.ssm_parameters if getattr(self, name) is not None}
        return roles | {"D": "no_decay"} if isinstance(self.D, nn.Parameter) else roles

    def forward(
        self,
        u: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Filter a batch of sequences.

        Args:
            u: (..., L, d_model), L >= 1.
            state: (..., *state), the state before the first step, from an earlier call; zero by default.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone, and the returned state is the one after its last real step.
            rate: Step length relative to training; 2.0 reads a signal sampled half as often.
            return_state: Also return the state after the last step.

        Returns:
            (..., L, d_model), and with ``return_state`` the state.

        Raises:
            ValueError: A shape does not fit, or a layer that has no state is given or asked for one.
            TypeError: The dtype is not the parameters', and autocast is off.
        """
        self._check(u, lengths)
        check_rate(rate)
        lead, length = u.shape[:-2], u.shape[-2]
        x = u.reshape(math.prod(lead), length, self.d_model)
        count = None if lengths is None else lengths.reshape(-1).to(u.device, torch.int64)
        if count is not None:
            # Filled, not multiplied: padding may hold NaN.
            x = x.masked_fill(~valid_steps(count, length)[..., None], 0)
        signal = x.transpose(1, 2)
        if state is None and not return_state:
            y = self._convolve(signal, self.system(rate))
            return self._mix(y.transpose(1, 2), x).reshape(u.shape)
        system = self.recurrence(rate)
        if state is not None:
            _check_state(state, (*lead, *system.state_shape), u)
        precise = torch.promote_types(self.log_dt.dtype, torch.float32)
        start = None if state is None else state.reshape(x.shape[0], *system.state_shape).to(precise)
        y = self._convolve(signal, system)
        if start is not None:
            y = y + system.response(start, length).flatten(1, 2).to(y.dtype)
        out = self._mix(y.transpose(1, 2), x).reshape(u.shape)
        if not return_state:
            return out
        final = _final_state(system, signal, start, count)
        return out, final.reshape(*lead, *system.state_shape)

    def stepper(self, rate: float = 1.0) -> Stepper:
        """Give the layer as a recurrence for one step at a time, with the parameters as they are now.

        Args:
            rate: As in ``forward``.

        Returns:
            ``y_t, state = stepper(u_t, state)``, starting from ``stepper.initial_state(batch_size)`` or from the state
            that ``forward`` returned, which reads a prompt at once.

        Raises:
            ValueError: The layer has no state to step with, e.g. as it is bidirectional.
        """
        return StateSpaceStepper(self, rate)

    def recurrence(self, rate: float = 1.0) -> LinearSystem:
        """The system of a layer whose past can be carried in a state.

        Args:
            rate: As in ``forward``.

        Returns:
            ``system(rate)``.

        Raises:
            ValueError: The layer is bidirectional, or its kernel depends on the sequence's length.
        """
        system, name = self.system(rate), type(self).__name__
        if self.bidirectional:
            raise ValueError(
                f"a bidirectional {name} has no stepper and no state to carry: its output depends on the future; "
                "call it on whole sequences"
            )
        if not isinstance(system, LinearSystem):
            raise ValueError(
                f"this {name} has no stepper and no state to carry: its kernel depends on the sequence's length; "
                "call it on whole sequences"
            )
        return system

    def _freeze(self, names: Sequence[str]) -> None:
        """Stop training the parameters that ``frozen`` names; ``names`` are those there are to choose from."""
        for name in self.frozen:
            if name not in names:
                raise ValueError(unknown("frozen", name, names))
            for parameter in (p for n, p in self.named_parameters(recurse=False) if n in _FAMILY.get(name, (name,))):
                parameter.requires_grad_(False)

    def _check(self, u: Tensor, lengths: Tensor | None) -> None:
        if u.ndim < 2 or u.shape[-1] != self.d_model:
            raise ValueError(f"u must be (..., L, d_model) with d_model={self.d_model}; got shape {tuple(u.shape)}")
        if u.shape[-2] == 0:
            raise ValueError(f"u must have at least one step; got shape {tuple(u.shape)}")
        if u.dtype != self.log_dt.dtype and autocast_dtype(u) is None:
            raise TypeError(
                f"u must be {self.log_dt.dtype} as the layer's parameters are; got {u.dtype}; cast u, or use autocast"
            )
        if lengths is not None:
            check_lengths(lengths, u)

    def _convolve(self, signal: Tensor, system: KernelSystem) -> Tensor:
        """Signal (B, H, L) to (B, channels H, L)."""
        kernel = system.kernel(signal.shape[-1]).flatten(0, 1)
        rows = self.channels * self.d_model
        if self.channels > 1:
            signal = signal[:, None].expand(-1, self.channels, -1, -1).flatten(1, 2)
        backward = kernel[rows:] if self.bidirectional else None
        return ops.fft_conv(signal, kernel[:rows], reverse_kernel=backward, skip=self.D.flatten().to(kernel.dtype))


# What one name in `frozen` stands for.
_FAMILY = {"A": ("A_real", "A_imag"), "dt": ("log_dt",)}


def check_rate(rate: float) -> None:
    """Refuse a rate that is no change of the step length.

    Args:
        rate: Step length relative to training.

    Raises:
        ValueError: It is not above 0 and finite.
    """
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ValueError(f"rate must be above 0 and finite; got {rate!r}")


def _check_state(state: Tensor, expected: tuple[int, ...], u: Tensor) -> None:
    if not isinstance(state, Tensor) or not state.is_floating_point():
        kind = state.dtype if isinstance(state, Tensor) else type(state).__name__
        raise TypeError(f"state must be a real tensor, from initial_state or an earlier call; got {kind}")
    if state.shape != expected or state.device != u.device:
        raise ValueError(
            f"state must be {expected} on {u.device} for this u; got {tuple(state.shape)} on {state.device}"
        )


def _final_state(system: LinearSystem, signal: Tensor, start: Tensor | None, count: Tensor | None) -> Tensor:
    """The state after each sequence's last valid step."""
    length = signal.shape[-1]
    if count is not None:
        # Padding moved to the front, where a zero input leaves a zero state.
        index = torch.arange(length, device=signal.device) - (length - count)[:, None]
        signal = signal.gather(-1, index.clamp_min(0)[:, None].expand_as(signal)) * (index >= 0)[:, None]
    final = system.driven(signal)
    if start is None:
        return final
    steps = torch.full((signal.shape[0],), length, device=signal.device) if count is None else count
    return final + system.decayed(start, steps)


class StateSpaceStepper(Stepper):
    """A state space layer as a recurrence: the same work and memory per step at any position.

    Args:
        layer: A layer whose past fits into a state; its parameters are discretised once, here.
        rate: As in the layer's ``forward``.
    """

    @torch.no_grad()
    def __init__(self, layer: StateSpaceLayer, rate: float = 1.0) -> None:
        check_rate(rate)
        # A copy: training the layer further must not change a stepper that is half new and half old.
        self._layer, self._rate = copy.deepcopy(layer).eval(), rate
        self._system = self._layer.recurrence(rate)

    def initial_state(self, batch_size: int) -> Tensor:
        """Give the state before the first step.

        Args:
            batch_size: B.

        Returns:
            (B, *state) zeros.
        """
        like = self._layer.D
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_zeros(batch_size, *self._system.state_shape, dtype=dtype)

    @torch.no_grad()
    def __call__(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, without gradients and dropout.

        Args:
            u: (B, d_model).
            state: (B, *state).

        Returns:
            The output (B, d_model) and the next state.

        Raises:
            ValueError: A shape does not fit.
        """
        expected = self._system.state_shape
        if u.ndim != 2 or u.shape[1] != self._layer.d_model:
            raise ValueError(f"u must be (B, {self._layer.d_model}); got shape {tuple(u.shape)}")
        _check_state(state, (u.shape[0], *expected), u)
        y, state = self._system.step(u.to(state.dtype), state)
        y = y.to(u.dtype) + self._layer.D.to(u.dtype) * u[:, None]
        # As sequences of one step.
        return self._layer._mix(y.flatten(1)[:, None], u[:, None])[:, 0], state

    @torch.no_grad()
    def read(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take many steps at once, by the convolution.

        Args:
            u: (B, L, d_model).
            state: (B, *state).

        Returns:
            The outputs (B, L, d_model) and the state after the last step.
        """
        y, final = self._layer(u, state, rate=self._rate, return_state=True)
        return y, final
