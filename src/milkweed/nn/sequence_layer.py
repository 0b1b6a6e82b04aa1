"""A filter of single channels as a whole layer: activation, gate and output layer behind it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed._arguments import check_dtype, check_probability, check_tensor, checked
from milkweed._suggest import unknown
from milkweed.nn.filters.base import Filter, check_signal_dtype
from milkweed.nn.lengths import without_padding
from milkweed.nn.stepping import SurroundedStepper

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "none": lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}
OUTPUTS = ("glu", "linear", "none")


class Mixing(nn.Module):
    """What follows a filter: ``output(dropout(gate(u) * activation(y)))``.

    Args:
        d_model: H, channels in and out.
        channels: Readouts per channel that the filter gives.
        activation: After the filter.
        gate: Multiply by ``silu`` of a linear layer of the input.
        output: ``"glu"``, ``"linear"`` or ``"none"``.
        dropout: Probability, after the activation.
        tie_dropout: Drop a channel for a whole sequence instead of single steps.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        channels: int,
        *,
        activation: str,
        gate: bool,
        output: str,
        dropout: float,
        tie_dropout: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        check_probability(dropout=dropout)
        for name, given, known in (("activation", activation, ACTIVATIONS), ("output", output, OUTPUTS)):
            if given not in known:
                raise ValueError(unknown(name, given, known))
        if output == "none" and channels > 1:
            raise ValueError(f"output='none' cannot mix channels={channels} readouts; use output='linear'")
        self.activation, self.kind, self.tie_dropout = activation, output, tie_dropout
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate = nn.Linear(d_model, channels * d_model, **factory) if gate else None
        widths = {"glu": 2 * d_model, "linear": d_model}
        self.output = nn.Linear(channels * d_model, widths[output], **factory) if output != "none" else None
        self.dropout = nn.Dropout(dropout)

    def check_dtype(self, u: Tensor) -> None:
        """Refuse a signal of another dtype than the parameters', unless autocast is on."""
        for layer in (self.gate, self.output):
            # Layers that were converted, adapted or quantised refuse it themselves.
            if type(layer) is nn.Linear:
                check_signal_dtype(u, layer.weight.dtype, kept=False)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for layer in (self.output, self.gate):
            if layer is not None:
                layer.reset_parameters()

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        """Mix the channels: y (..., L, channels d_model), u (..., L, d_model) -> (..., L, d_model)."""
        y = ACTIVATIONS[self.activation](y)
        if self.gate is not None:
            y = y * F.silu(self.gate(u))
        if self.dropout.training:  # which may be asked for in evaluation, too
            y = y * self.dropout(torch.ones_like(y[..., :1, :])) if self.tie_dropout else self.dropout(y)
        if self.output is None:
            return y
        mixed: Tensor = self.output(y)
        return F.glu(mixed, -1) if self.kind == "glu" else mixed


class SequenceLayer(nn.Module):
    """``y = output(gate(u) * activation(filter(u)))``: channels are filtered one by one, then they mix.

    [`milkweed.nn.S4`][] and [`milkweed.nn.S4D`][] are this layer around their filters. [`milkweed.nn.LongConv`][] and
    [`milkweed.nn.CausalMonarchMixer`][] are filters, which alone in a network would never mix channels; in recipes
    their names stand for this layer around them.

    Args:
        filter: Leaves channels apart, see [`milkweed.nn.filters.Filter`][].
        activation: After the filter: ``"gelu"``, ``"relu"``, ``"silu"``, ``"tanh"``, ``"sigmoid"`` or ``"none"``.
        gate: Multiply by ``silu`` of a linear layer of the input, before the output layer.
        output: ``"glu"``, ``"linear"``, or ``"none"`` for channels that do not mix.
        dropout: Probability, after the activation.
        tie_dropout: Drop a channel for a whole sequence instead of single steps.
        device: Where the parameters of gate and output live.
        dtype: Their dtype.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        The layer of S4 (arXiv 2111.00396), as Simple long convolutions (arXiv 2302.06646) keep it around their kernels.

    Example:
        >>> layer = mw.nn.SequenceLayer(mw.nn.LongConv(16, l_max=100), gate=True)
        >>> y, state = layer(torch.randn(2, 60, 16), return_state=True)
        >>> layer(torch.randn(2, 40, 16), state).shape  # goes on where the first 60 steps ended
        torch.Size([2, 40, 16])
    """

    @checked
    def __init__(
        self,
        filter: Filter,
        *,
        activation: str = "gelu",
        gate: bool = False,
        output: str = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(filter, Filter):
            raise TypeError(f"filter must be a milkweed.nn.filters.Filter, e.g. LongConv; got {type(filter).__name__}")
        self.d_model, self.filter = filter.d_model, filter
        self.mix = Mixing(
            filter.d_model,
            filter.channels,
            activation=activation,
            gate=gate,
            output=output,
            dropout=dropout,
            tie_dropout=tie_dropout,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        self.filter.reset_parameters()
        self.mix.reset_parameters()

    def forward(
        self,
        u: Tensor,
        state: Any = None,
        *,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = False,
    ) -> Any:
        """Filter a batch of sequences and mix their channels.

        Args:
            u: (..., L, d_model), L >= 1.
            state: The filter's state before the first step, from an earlier call; zero by default.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone, and the returned state is the one after its last real step.
            rate: Step length relative to training; 2.0 reads a signal sampled half as often. State spaces only.
            return_state: Also return the state after the last step.

        Returns:
            (..., L, d_model), and with ``return_state`` the state.

        Raises:
            ValueError: A shape does not fit, or a layer that has no state is given or asked for one.
            TypeError: The dtype is not the parameters', and autocast is off.
        """
        check_tensor("u", u)
        self.mix.check_dtype(u)
        y = self.filter(u, state, lengths=lengths, rate=rate, return_state=return_state)
        y, state = y if return_state else (y, None)
        if self.mix.gate is not None:
            # The filter knows of padding by itself; the gate must not see it either, as it may hold NaN.
            u = without_padding(u, lengths)
        out = self.mix(y, u)
        return (out, state) if return_state else out

    def stepper(self, rate: float = 1.0) -> SequenceLayerStepper:
        """Give the layer as a recurrence for one step at a time, with the parameters as they are now.

        Args:
            rate: As in ``forward``.

        Returns:
            ``y_t, state = stepper(u_t, state)``, starting from ``stepper.initial_state(batch_size)`` or from the state
            that ``forward`` returned, which reads a prompt at once.

        Raises:
            ValueError: The filter has no state to step with, e.g. as it is bidirectional.
        """
        return SequenceLayerStepper(self, rate)


def divide_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the options of a filter in a layer into those of both; ``device`` and ``dtype`` go to both."""
    own = {name: value for name, value in options.items() if name in _SHARED or name not in _MIXING}
    return own, {name: options.get(name, default) for name, default in _MIXING.items()}


_SHARED = ("device", "dtype")
_MIXING = {
    name: parameter.default
    for name, parameter in inspect.signature(SequenceLayer).parameters.items()
    if name != "filter"
}


class SequenceLayerStepper(SurroundedStepper):
    """A filter's stepper, and what follows it."""

    def __init__(self, layer: SequenceLayer, rate: float = 1.0) -> None:
        super().__init__(layer.filter.stepper(rate))
        self.mix = copy.deepcopy(layer.mix).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step u (B, d_model); what mixes channels needs no sequence."""
        check_tensor("u", u)
        if u.ndim != 2:
            return super().forward(u, state)  # which refuses it
        self.mix.check_dtype(u)
        y, state = self.inner(u, state)
        return self.mix(y, u), state

    def before(self, u: Tensor) -> Tensor:
        """Refuse another dtype than the layer's."""
        self.mix.check_dtype(u)
        return u

    def after(self, y: Tensor, u: Tensor) -> Tensor:
        """Mix the channels of y (B, L, channels d_model), with u (B, L, d_model) for the gate."""
        mixed: Tensor = self.mix(y, u)
        return mixed
