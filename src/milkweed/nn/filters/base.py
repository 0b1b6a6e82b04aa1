"""What every filter shares: its call, and what it refuses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._arguments import LARGEST, check_tensor
from milkweed.nn.lengths import check_lengths, valid_steps
from milkweed.nn.stepping import Stepper
from milkweed.ops._common import autocast_dtype


class Filter(nn.Module, ABC):
    """A linear map along the sequence that leaves channels apart: (B, L, d_model) to (B, L, channels d_model).

    [`milkweed.nn.SequenceLayer`][] puts activation, gate and output layer behind it. A subclass sets ``d_model``,
    and ``l_max`` if sequences have a longest length.

    Example:
        >>> filter = mw.nn.filters.S4DFilter(8)
        >>> isinstance(filter, mw.nn.filters.Filter), filter(torch.randn(2, 50, 8)).shape
        (True, torch.Size([2, 50, 8]))
    """

    d_model: int
    # Readouts per channel: the outputs are (..., L, channels d_model), readout by readout.
    channels: int = 1
    # The longest sequence; None for any.
    l_max: int | None = None
    # What the constructor calls it.
    length_option: str = "l_max"

    @abstractmethod
    def forward(
        self,
        u: Tensor,
        state: Any = None,
        *,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = False,
    ) -> Any:
        """Filter a batch of sequences.

        Args:
            u: (..., L, d_model), L >= 1.
            state: The state before the first step, from an earlier call; zero by default.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone, and the returned state is the one after its last real step.
            rate: Step length relative to training.
            return_state: Also return the state after the last step.

        Returns:
            (..., L, channels d_model), and with ``return_state`` the state.
        """

    @abstractmethod
    def stepper(self, rate: float = 1.0) -> Stepper:
        """Give the filter for one step at a time, with the parameters as they are now.

        Args:
            rate: As in ``forward``.

        Returns:
            ``y_t, state = stepper(u_t, state)``, starting from ``stepper.initial_state(batch_size)`` or from the state
            that ``forward`` returned.
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""

    def _check(self, u: Tensor, lengths: Tensor | None) -> None:
        check_tensor("u", u)
        if u.ndim < 2 or u.shape[-1] != self.d_model:
            raise ValueError(f"u must be (..., L, d_model) with d_model={self.d_model}; got shape {tuple(u.shape)}")
        if self.l_max is None and u.shape[-2] == 0:
            raise ValueError(f"u must have at least one step; got shape {tuple(u.shape)}")
        if self.l_max is not None and not 1 <= u.shape[-2] <= self.l_max:
            raise ValueError(
                f"u must have 1 to {self.length_option}={self.l_max} steps; got shape {tuple(u.shape)}; "
                f"build the layer with a larger {self.length_option}"
            )
        if not u.is_floating_point():
            raise TypeError(f"u must be real floating point; got {u.dtype}; use u.float()")
        if lengths is not None:
            check_lengths(lengths, u)

    def _prepared(self, u: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A checked batch as (B, L, d_model), zero on padding, and its lengths (B,)."""
        self._check(u, lengths)
        x = u.reshape(math.prod(u.shape[:-2]), *u.shape[-2:])
        if lengths is None:
            return x, None
        count = lengths.reshape(-1).to(u.device, torch.int64)
        # Filled, not multiplied: padding may hold NaN.
        return x.masked_fill(~valid_steps(count, u.shape[-2])[..., None], 0), count


def check_signal_dtype(u: Tensor, own: torch.dtype, *, kept: bool) -> None:
    """Refuse a signal of another dtype than a filter's, unless autocast is on."""
    # ``kept`` says that its parameters stay in float32 in a model of half precision: then half precision signals will
    # do as well.
    if u.dtype == own:
        return
    narrow = kept and own == torch.float32 and u.dtype in {torch.bfloat16, torch.float16}
    if not narrow and autocast_dtype(u) is None:
        raise TypeError(f"u must be {own} as the layer's parameters are; got {u.dtype}; cast u, or use autocast")


def check_rate(rate: object) -> None:
    """Refuse a rate, a step length relative to training, that is not above 0, or too large to be one."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= LARGEST:
        raise ValueError(f"rate must be above 0 and finite, below 2**31; got {rate!r}")


def check_rate_is_one(rate: object, kind: str) -> None:
    """Refuse another rate than 1 for a filter that knows no time but steps."""
    check_rate(rate)
    if rate != 1:
        raise ValueError(
            f"rate must be 1 for a {kind}, whose kernels are tied to its steps; got {rate!r}; use a state space "
            "layer, S4 or S4D, for signals of another sampling rate"
        )
