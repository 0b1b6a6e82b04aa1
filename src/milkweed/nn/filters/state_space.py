"""What state space filters share: everything except where their system comes from."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops, ssm
from milkweed._arguments import check_kind, checked
from milkweed._suggest import unknown
from milkweed.nn.filters.base import Filter, check_rate, check_signal_dtype
from milkweed.nn.filters.systems import KernelSystem, LinearSystem
from milkweed.nn.precision import KeepsFloat32, at_least_float32
from milkweed.nn.stepping import Stepper, check_batch_size, check_steps

# What one name in `frozen` stands for.
_FAMILY = {"A": ("A_real", "A_imag"), "dt": ("log_dt",)}


class StateSpaceFilter(KeepsFloat32, Filter):
    """``y = K * u + D u``, where K are the kernels of one linear system per channel.

    A subclass creates the parameters of its system (with ``_empty``), calls ``_stop_training`` and
    ``reset_parameters`` and defines ``system`` and ``_reset_system``. In a model of half precision its parameters stay
    in float32.

    Args:
        d_model: H, channels in and out.
        channels: Readouts per channel (heads), mixed by the output layer.
        bidirectional: Convolve with a second kernel over the future.
        dt_min: Smallest initial step; 1/dt_min is the longest memory at the start, in steps.
        dt_max: Largest initial step.
        skip: Add D u, with a trained D for every readout.
        frozen: Parameters that are not trained: of ``"A"``, ``"B"``, ``"C"``, ``"D"``, ``"dt"`` and, where there is
            one, ``"P"``.
        device: Where parameters live.
        dtype: Their dtype, float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Example:
        >>> filter = mw.nn.filters.S4Filter(8)
        >>> isinstance(filter, mw.nn.filters.StateSpaceFilter), filter.D.shape
        (True, torch.Size([1, 8]))
    """

    # Parameters that want their own learning rate and no weight decay.
    ssm_parameters: tuple[str, ...] = ()

    log_dt: nn.Parameter
    D: nn.Parameter | None  # (channels, H)

    @checked
    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        bidirectional: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        skip: bool = True,
        frozen: Sequence[str] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        ssm.log_timescale(0, dt_min, dt_max)  # refuses a bad range before anything is allocated
        self.d_model, self.channels, self.bidirectional = d_model, channels, bidirectional
        self.dt_min, self.dt_max, self.frozen = dt_min, dt_max, tuple(frozen)
        self._factory: dict[str, Any] = {"device": device, "dtype": at_least_float32(dtype)}
        self.D = self._empty(channels, d_model) if skip else None

    def _empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, **self._factory))

    def _stop_training(self, names: Sequence[str]) -> None:
        """Stop training the parameters that ``frozen`` names; ``names`` are those there are to choose from."""
        for name in self.frozen:
            if name not in names:
                raise ValueError(unknown("frozen", name, names))
            for parameter in (p for n, p in self.named_parameters(recurse=False) if n in _FAMILY.get(name, (name,))):
                parameter.requires_grad_(False)

    @abstractmethod
    def system(self, rate: float = 1.0) -> KernelSystem:
        """The discrete system that the parameters stand for, in float32 at least; gradients flow through it.

        Args:
            rate: Step length relative to training.

        Returns:
            One system per channel with ``channels`` readouts, twice as many for a bidirectional filter: first those
            over the past, then those over the future.
        """

    @abstractmethod
    def _reset_system(self) -> None:
        """Draw the parameters of the system anew."""

    @torch.no_grad()
    @override
    def reset_parameters(self) -> None:
        self._reset_system()
        if self.D is not None:
            self.D.normal_()

    def parameter_roles(self) -> dict[str, str]:
        """Name the parameters with a learning rate of their own and no decay, and D, which is not decayed either."""
        roles = {name: "ssm" for name in self.ssm_parameters if getattr(self, name) is not None}
        return roles if self.D is None else roles | {"D": "no_decay"}

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
            (..., L, channels d_model), and with ``return_state`` the state.

        Raises:
            ValueError: A shape does not fit, or a filter that has no state is given or asked for one.
            TypeError: The dtype is not the parameters', and autocast is off.
        """
        x, count = self._prepared(u, lengths)
        check_kind(bool, return_state=return_state)
        lead, signal, shape = u.shape[:-2], x.transpose(1, 2), (*u.shape[:-1], self.channels * self.d_model)
        if state is None and not return_state:
            y = convolve(self.system(rate), signal, self.D, self.bidirectional)
            return y.transpose(1, 2).reshape(shape)
        system = self.recurrence(rate)
        if state is not None:
            _check_state(state, (*lead, *system.state_shape), u)
            state = state.reshape(x.shape[0], *system.state_shape).to(self._precise())
        y, final = respond(system, signal, self.D, state, count, return_state)
        y = y.transpose(1, 2).reshape(shape)
        return y if final is None else (y, final.reshape(*lead, *system.state_shape))

    def stepper(self, rate: float = 1.0) -> StateSpaceStepper:
        """Give the filter as a recurrence for one step at a time, with the parameters as they are now.

        Args:
            rate: As in ``forward``.

        Returns:
            ``y_t, state = stepper(u_t, state)``, starting from ``stepper.initial_state(batch_size)`` or from the state
            that ``forward`` returned, which reads a prompt at once.

        Raises:
            ValueError: The filter has no state to step with, e.g. as it is bidirectional.
        """
        check_rate(rate)
        with torch.no_grad():
            return StateSpaceStepper(self.recurrence(rate), self.D)

    def recurrence(self, rate: float = 1.0) -> LinearSystem:
        """The system of a filter whose past can be carried in a state.

        Args:
            rate: As in ``forward``.

        Returns:
            ``system(rate)``.

        Raises:
            ValueError: The filter is bidirectional, or its kernel depends on the sequence's length.
        """
        system, name = self.system(rate), type(self).__name__.removesuffix("Filter")
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

    def _precise(self) -> torch.dtype:
        return torch.promote_types(self.log_dt.dtype, torch.float32)

    def _check(self, u: Tensor, lengths: Tensor | None) -> None:
        super()._check(u, lengths)
        check_signal_dtype(u, self.log_dt.dtype, kept=True)


def convolve(system: KernelSystem, signal: Tensor, skip: Tensor | None, bidirectional: bool = False) -> Tensor:
    """Run a system over whole sequences (B, H, L) -> (B, R H, L), by the convolution with its kernels."""
    # There is one system with R readouts for each of H channels; if bidirectional it has 2 R, and the second half reads
    # the future.
    kernel = system.kernel(signal.shape[-1])
    readouts = kernel.shape[0] // 2 if bidirectional else kernel.shape[0]
    if readouts > 1:
        signal = signal[:, None].expand(-1, readouts, -1, -1).flatten(1, 2)
    return ops.fft_conv(
        signal,
        kernel[:readouts].flatten(0, 1),
        reverse_kernel=kernel[readouts:].flatten(0, 1) if bidirectional else None,
        skip=None if skip is None else skip.flatten().to(kernel.dtype),
    )


def respond(
    system: LinearSystem,
    signal: Tensor,
    skip: Tensor | None,
    state: Tensor | None,
    count: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Run a system over sequences (B, H, L) -> (B, R H, L) that go on from a state (B, H, ...), None for zero."""
    # ``count`` (B,) says how many steps are real; the signal is zero on the others. The state after each sequence's
    # last real step comes second, if ``return_state``.
    length = signal.shape[-1]
    y = convolve(system, signal, skip)
    if state is not None:
        y = y + system.response(state, length).flatten(1, 2).to(y.dtype)
    if not return_state:
        return y, None
    if count is not None:
        # Padding moved to the front, where a zero input leaves a zero state.
        index = torch.arange(length, device=signal.device) - (length - count)[:, None]
        signal = signal.gather(-1, index.clamp_min(0)[:, None].expand_as(signal)) * (index >= 0)[:, None]
    final = system.driven(signal)
    if state is None:
        return y, final
    steps = torch.full((signal.shape[0],), length, device=signal.device) if count is None else count
    return y, final + system.decayed(state, steps)


def _check_state(state: object, expected: tuple[int, ...], u: Tensor) -> None:
    if not isinstance(state, Tensor) or not state.is_floating_point():
        kind = state.dtype if isinstance(state, Tensor) else type(state).__name__
        raise TypeError(f"state must be a real tensor, from initial_state or an earlier call; got {kind}")
    if state.shape != expected or state.device != u.device:
        raise ValueError(
            f"state must be {expected} on {u.device} for this u; got {tuple(state.shape)} on {state.device}"
        )


class StateSpaceStepper(KeepsFloat32, Stepper):
    """A state space filter as a recurrence: the same work and memory per step at any position."""

    b: Tensor
    D: Tensor | None

    def __init__(self, system: LinearSystem, skip: Tensor | None) -> None:
        super().__init__()
        self._kind, self._shape = type(system), system.state_shape
        fields = {field.name: getattr(system, field.name) for field in dataclasses.fields(cast(Any, system))}
        self._fields, self._constants = list(fields), []
        for index, tensor in enumerate(system.stepping()):
            name = next((name for name, own in fields.items() if own is tensor), f"step_{index}")
            fields[name] = tensor
            self._constants.append(name)
        for name, held in {**fields, "D": skip}.items():
            # Copies: training the filter further must not change a stepper that is half new and half old.
            self.register_buffer(name, None if held is None else held.detach().clone())

    @property
    def system(self) -> LinearSystem:
        """The discrete system."""
        return self._kind(*(getattr(self, name) for name in self._fields))

    def initial_state(self, batch_size: int) -> Tensor:
        """Give the state before the first step, (B, *state) zeros."""
        check_batch_size(batch_size)
        return self.b.new_zeros(batch_size, *self._shape)

    @torch.no_grad()
    def forward(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step u (B, d_model) -> (B, channels d_model), without gradients."""
        self._check(u, state)
        # Looked up here: as an attribute, finding a buffer takes as long as using it.
        buffers = cast(dict[str, Tensor], self._buffers)
        y, state = self._kind.step(u.to(state.dtype), state, *[buffers[name] for name in self._constants])
        skip = self._buffers["D"]
        if skip is not None:
            y = y + skip * u[:, None]
        return y.flatten(1).to(u.dtype), state

    @torch.no_grad()
    def read(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take many steps at once, u (B, L, d_model) -> (B, L, channels d_model), by the convolution."""
        self._check(u, state, many=True)
        y, final = respond(self.system, u.transpose(1, 2), self.D, state)
        assert final is not None
        return y.transpose(1, 2), final

    def _check(self, u: Tensor, state: Tensor, *, many: bool = False) -> None:
        shape, dtype = self._shape, self.b.dtype
        check_steps(u, shape[0], many=many)
        check_signal_dtype(u, dtype, kept=True)
        _check_state(state, (u.shape[0], *shape), u)
        if state.dtype != dtype:
            raise TypeError(f"state must be {dtype}, as initial_state gives it; got {state.dtype}")
