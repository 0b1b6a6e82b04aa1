"""A filter of single channels as a whole layer: what follows the kernel in S4, behind any other filter."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.nn.lengths import check_lengths, valid_steps
from milkweed.nn.state_space import MixingLayer
from milkweed.nn.stepping import Stepper


class FilterLayer(MixingLayer):
    """``y = mix(gate(u) * activation(filter(u)))``, for a filter that leaves channels apart and is linear.

    [`milkweed.nn.LongConv`][] and [`milkweed.nn.CausalMonarchMixer`][] are such filters; alone in a network they would
    never mix channels. In recipes their names stand for this layer around them.

    Args:
        filter: Maps (B, L, d_model) to (B, L, d_model), with ``lengths``.
        d_model: H, channels in and out.
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

    Source:
        The layer of S4 (arXiv 2111.00396), as Simple long convolutions (arXiv 2302.06646) keep it around their kernels.
    """

    def __init__(
        self,
        filter: nn.Module,
        d_model: int,
        *,
        activation: str = "gelu",
        gate: bool = False,
        output: str = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            channels=1,
            activation=activation,
            gate=gate,
            output=output,
            dropout=dropout,
            tie_dropout=tie_dropout,
            device=device,
            dtype=dtype,
        )
        self.filter = filter

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        self.filter.reset_parameters()  # type: ignore[operator]
        self._reset_mixing()

    def forward(self, u: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Filter a batch of sequences and mix their channels.

        Args:
            u: (..., L, d_model).
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone.

        Returns:
            (..., L, d_model).
        """
        if lengths is not None:
            check_lengths(lengths, u)
            valid = valid_steps(lengths.reshape(-1).to(u.device), u.shape[-2]).view(u.shape[:-1])
            # Here as well, as the gate sees the padding, which may hold NaN.
            u = u.masked_fill(~valid[..., None], 0)
        return self._mix(self.filter(u, lengths=lengths), u)

    def stepper(self, rate: float = 1.0) -> FilterStepper:
        """Give the layer step by step, with the parameters as they are now.

        Args:
            rate: Passed to the filter.

        Returns:
            A stepper over (B, d_model), with the filter's state.
        """
        return FilterStepper(self, rate)


class FilterStepper(Stepper):
    """A filter's stepper, and what follows it.

    Args:
        layer: The layer.
        rate: Passed to the filter.
    """

    def __init__(self, layer: FilterLayer, rate: float = 1.0) -> None:
        self._inner: Stepper = layer.filter.stepper(rate)  # type: ignore[operator]
        self._layer = copy.deepcopy(layer).eval()

    def initial_state(self, batch_size: int) -> Any:
        """Give the filter's state before the first step.

        Args:
            batch_size: B.

        Returns:
            The state of B sequences.
        """
        return self._inner.initial_state(batch_size)

    @torch.no_grad()
    def __call__(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step, without gradients and dropout.

        Args:
            u: (B, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The output (B, d_model) and the next state.
        """
        y, state = self._inner(u, state)
        # One step is a sequence of its own to what follows the filter.
        return self._layer._mix(y[:, None], u[:, None])[:, 0], state

    @torch.no_grad()
    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take many steps at once.

        Args:
            u: (B, L, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The outputs (B, L, d_model) and the state after the last step.
        """
        y, state = self._inner.read(u, state)
        return self._layer._mix(y, u), state
