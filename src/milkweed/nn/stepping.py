"""What it means to run a layer or a network one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from milkweed.nn.options import check_kind
from milkweed.ops._common import autocast_dtype, check_tensor


class Stepper(ABC):
    """A layer as a recurrence, with its state outside: ``y_t, state = stepper(u_t, state)``.

    A stepper holds the layer's parameters as they were when it was made. Stepping through a sequence gives what
    ``forward`` gives for the whole of it. A state is a tensor, or a structure of tensors for what is made of several
    layers; it is not changed in place.
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
    def __call__(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
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


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of sequences.

    Args:
        batch_size: B.

    Raises:
        ValueError: It is below 0.
        TypeError: It is no integer.
    """
    check_kind(int, batch_size=batch_size)
    if batch_size < 0:
        raise ValueError(f"batch_size must be at least 0; got {batch_size}")


def check_steps(u: Tensor, features: int, *, many: bool = False, dtype: torch.dtype | None = None) -> None:
    """Refuse what is not one step, or not many.

    Args:
        u: (B, features), or (B, L, features) with L >= 1.
        features: Of a step.
        many: Which of the two it must be.
        dtype: What it must be without autocast; any real floating point if None.

    Raises:
        ValueError: The shape does not fit.
        TypeError: The dtype does not.
    """
    check_tensor("u", u)
    if u.ndim != 2 + many or u.shape[-1] != features or (many and u.shape[1] == 0):
        expected = f"(B, L, {features}) with L >= 1" if many else f"(B, {features})"
        raise ValueError(f"u must be {expected}; got shape {tuple(u.shape)}")
    if not u.is_floating_point():
        raise TypeError(f"u must be real floating point; got {u.dtype}; use u.float()")
    if dtype not in {None, u.dtype} and autocast_dtype(u) is None:
        raise TypeError(f"u must be {dtype} as the layer's parameters are; got {u.dtype}; cast u, or use autocast")


def check_state(state: object, kind: type, held: Callable[[Any], Tensor], u: Tensor, channels: int) -> None:
    """Refuse a state that is another layer's, or of other sequences.

    Args:
        state: The state.
        kind: What it must be.
        held: Gives a tensor (B, channels, ...) of it.
        u: (B, ...), the step or steps that follow.
        channels: What it has of them.

    Raises:
        ValueError: It is of another number of sequences, or on another device.
        TypeError: It is of another kind.
    """
    if not isinstance(state, kind):
        raise TypeError(f"state must be from initial_state or an earlier step; got {type(state).__name__}")
    tensor = held(state)
    if tensor.shape[:2] != (u.shape[0], channels) or tensor.device != u.device:
        raise ValueError(
            f"state must be of {u.shape[0]} sequences of {channels} channels on {u.device} for this u; got "
            f"{tuple(tensor.shape[:2])} on {tensor.device}"
        )
