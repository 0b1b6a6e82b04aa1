"""What it means to run a layer or a network one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


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
