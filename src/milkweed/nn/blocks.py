"""Residual blocks that networks are stacked from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._suggest import unknown
from milkweed.nn.stepping import Stepper

NORMS = ("batch", "layer")


class SequenceNorm(nn.Module):
    """Layer or batch normalisation of (B, L, d_model) sequences.

    Args:
        kind: ``"layer"`` or ``"batch"``.
        d_model: Channels.

    Raises:
        ValueError: The kind is unknown.
    """

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        if kind not in NORMS:
            raise ValueError(unknown("norm", kind, NORMS))
        self.norm: nn.Module = nn.LayerNorm(d_model) if kind == "layer" else nn.BatchNorm1d(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (B, L, d_model).

        Returns:
            (B, L, d_model).
        """
        if isinstance(self.norm, nn.BatchNorm1d):
            normed: Tensor = self.norm(x.flatten(0, -2))
            return normed.view_as(x)
        return self.norm(x)


class ResidualBlock(nn.Module):
    """``x + dropout(layer(norm(x)))``, or ``norm(x + dropout(layer(x)))`` with ``prenorm=False``.

    Args:
        layer: Maps (B, L, d_model) to (B, L, d_model).
        d_model: Channels.
        norm: ``"layer"`` or ``"batch"``.
        prenorm: Where the norm stands.
        dropout: Probability, on the layer's output.
    """

    def __init__(
        self, layer: nn.Module, d_model: int, *, norm: str = "layer", prenorm: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = SequenceNorm(norm, d_model)
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.prenorm = prenorm

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """Apply the block.

        Args:
            x: (B, L, d_model).
            **options: Passed to the layer, e.g. ``lengths``.

        Returns:
            (B, L, d_model).
        """
        if self.prenorm:
            return x + self.dropout(self.layer(self.norm(x), **options))
        return self.norm(x + self.dropout(self.layer(x, **options)))

    def stepper(self, rate: float = 1.0) -> BlockStepper:
        """Give the block as a recurrence, with the parameters as they are now.

        Args:
            rate: Passed to the layer.

        Returns:
            A stepper over (B, d_model), with the layer's state.

        Raises:
            TypeError: The layer is no recurrence.
        """
        if not hasattr(self.layer, "stepper"):
            raise TypeError(
                f"{type(self.layer).__name__} cannot run step by step: it has no stepper, as its outputs depend on the "
                "whole sequence; call it on whole sequences"
            )
        return BlockStepper(self, rate)


class BlockStepper(Stepper):
    """A residual block as a recurrence.

    Args:
        block: The block; its layer has a stepper.
        rate: Passed to the layer.
    """

    def __init__(self, block: ResidualBlock, rate: float = 1.0) -> None:
        self._norm, self._prenorm = copy.deepcopy(block.norm).eval(), block.prenorm
        self._inner: Stepper = block.layer.stepper(rate)  # type: ignore[operator]

    def initial_state(self, batch_size: int) -> Any:
        """Give the layer's state before the first step.

        Args:
            batch_size: B.

        Returns:
            The state of B sequences.
        """
        return self._inner.initial_state(batch_size)

    def __call__(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step, without gradients and dropout.

        Args:
            u: (B, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The output (B, d_model) and the next state.
        """
        return self._around(self._inner, u, state)

    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take many steps at once.

        Args:
            u: (B, L, d_model).
            state: From ``initial_state`` or the last step.

        Returns:
            The outputs (B, L, d_model) and the state after the last step.
        """
        return self._around(self._inner.read, u, state)

    @torch.no_grad()
    def _around(self, run: Callable[[Tensor, Any], tuple[Tensor, Any]], x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = run(self._norm(x) if self._prenorm else x, state)
        return (x + y if self._prenorm else self._norm(x + y)), state
