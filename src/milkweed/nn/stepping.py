"""What it means to run a layer or a network one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._arguments import check_kind, check_tensor
from milkweed.ops._common import autocast_dtype


class Stepper(nn.Module, ABC):
    """A layer as a recurrence, with its state outside: ``y_t, state = stepper(u_t, state)``.

    A stepper holds the layer's parameters as they were when it was made. Stepping through a sequence gives what
    ``forward`` gives for the whole of it. A state is a tensor, or a structure of tensors for what is made of several
    layers; it is not changed in place. A stepper is a module without anything to train: it moves by ``to``, is saved by
    its ``state_dict``, and is exported where the states of its layers have one size.

    Example:
        >>> layer, u = mw.nn.S4D(8).eval(), torch.randn(2, 20, 8)
        >>> stepper = layer.stepper()
        >>> y, state = stepper.read(u[:, :19], stepper.initial_state(batch_size=2))
        >>> y, state = stepper(u[:, 19], state)
        >>> torch.allclose(y, layer(u)[:, 19], atol=1e-4), isinstance(stepper, mw.nn.Stepper)
        (True, True)
    """

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """Give the state before the first step.

        Args:
            batch_size: B.

        Returns:
            The state of B sequences.
        """

    @abstractmethod
    def forward(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step.

        Args:
            u: (B, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The output (B, d_model) and the next state.
        """

    @abstractmethod
    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take many steps at once, e.g. over a prompt, as fast as ``forward``.

        Args:
            u: (B, L, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The outputs (B, L, d_model) and the state after the last step.
        """


class SurroundedStepper(Stepper):
    """The stepper of a layer, with what comes before and after it at every step."""

    def __init__(self, inner: Stepper) -> None:
        super().__init__()
        self.inner = inner

    def before(self, u: Tensor) -> Tensor:
        """What the layer gets of u (B, L, d_model)."""
        return u

    @abstractmethod
    def after(self, y: Tensor, u: Tensor) -> Tensor:
        """What becomes of its output y (B, L, d_model) on the input u."""

    def initial_state(self, batch_size: int) -> Any:
        """Give the inner stepper's state before the first step."""
        return self.inner.initial_state(batch_size)

    @torch.no_grad()
    def forward(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step u (B, d_model) through what comes before, the layer and what comes after."""
        check_tensor("u", u)
        if u.ndim != 2:
            self.inner(u, state)  # which says how many features a step has
            raise ValueError(f"u must be (B, d_model), one step; got shape {tuple(u.shape)}; use read for many steps")
        # One step is a sequence of its own to what stands around the layer.
        u = u[:, None]
        y, state = self.inner(self.before(u)[:, 0], state)
        return self.after(y[:, None], u)[:, 0], state

    @torch.no_grad()
    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take many steps u (B, L, d_model) at once, in the same way."""
        check_tensor("u", u)
        y, state = self.inner.read(self.before(u), state)
        return self.after(y, u), state


class StepperStack(nn.ModuleList):
    """The steppers of layers one after another."""

    def __init__(self, layers: Iterable[nn.Module], rate: float = 1.0) -> None:
        super().__init__(layer.stepper(rate) for layer in layers)  # type: ignore[operator]

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        """Give the layers' states before the first step."""
        return tuple(stepper.initial_state(batch_size) for stepper in self)  # type: ignore[operator]

    def outputs(self, x: Tensor, states: Sequence[Any]) -> tuple[list[Tensor], tuple[Any, ...]]:
        """Take the steps of x (B, L, d_model): the input and the output of every layer, and the next states."""
        if not isinstance(states, tuple) or len(states) != len(self):
            given = f"{len(states)} of them" if isinstance(states, tuple) else type(states).__name__
            raise TypeError(
                f"state must be from initial_state or the last step, the states of {len(self)} blocks; got {given}"
            )
        found, after = [x], []
        for stepper, state in zip(self, states, strict=True):
            x, state = advance(stepper, x, state)
            found.append(x)
            after.append(state)
        return found, tuple(after)


def advance(stepper: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Take as many steps as x (B, L, features) has: one by the recurrence, more by reading."""
    if x.shape[1] > 1:
        return stepper.read(x, state)  # type: ignore[operator]
    y, state = stepper(x[:, 0], state)
    return y[:, None], state


def check_batch_size(batch_size: int) -> None:
    """Refuse a number of sequences that is not an integer from 0 on."""
    check_kind(int, batch_size=batch_size)
    if batch_size < 0:
        raise ValueError(f"batch_size must be at least 0; got {batch_size}")


def check_steps(u: Tensor, features: int, *, many: bool = False, dtype: torch.dtype | None = None) -> None:
    """Refuse other than one step (B, features), or not ``many`` (B, L, features), or another dtype than the layer's."""
    check_tensor("u", u)
    if u.ndim != 2 + many or u.shape[-1] != features or (many and u.shape[1] == 0):
        expected = f"(B, L, {features}) with L >= 1" if many else f"(B, {features})"
        raise ValueError(f"u must be {expected}; got shape {tuple(u.shape)}")
    if not u.is_floating_point():
        raise TypeError(f"u must be real floating point; got {u.dtype}; use u.float()")
    if dtype not in {None, u.dtype} and autocast_dtype(u) is None:
        raise TypeError(f"u must be {dtype} as the layer's parameters are; got {u.dtype}; cast u, or use autocast")


def check_state(state: object, kind: type, held: Callable[[Any], Tensor], u: Tensor, channels: int) -> None:
    """Refuse a state that is another layer's, or of other sequences, or on another device."""
    # ``held`` gives a tensor (B, channels, ...) of it.
    if not isinstance(state, kind):
        raise TypeError(f"state must be from initial_state or an earlier step; got {type(state).__name__}")
    tensor = held(state)
    if tensor.shape[:2] != (u.shape[0], channels) or tensor.device != u.device:
        raise ValueError(
            f"state must be of {u.shape[0]} sequences of {channels} channels on {u.device} for this u; got "
            f"{tuple(tensor.shape[:2])} on {tensor.device}"
        )
