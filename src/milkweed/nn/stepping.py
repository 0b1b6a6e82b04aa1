"""What it means to run a layer one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Stepper(ABC):
    """A layer as a recurrence, with its state outside: ``y_t, state = stepper(u_t, state)``.

    A stepper holds the layer's parameters as they were when it was made. Stepping through a sequence gives what
    ``forward`` gives for the whole of it.
    """

    @abstractmethod
    def initial_state(self, batch_size: int) -> Tensor:
        """Give the state before the first step.

        Args:
            batch_size: B.

        Returns:
            The state of B sequences.
        """

    @abstractmethod
    def __call__(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            u: (B, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The output (B, d_model) and the next state.
        """
