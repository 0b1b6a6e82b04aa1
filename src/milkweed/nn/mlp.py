"""Feed-forward layers over features."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed._arguments import RAW, check_features, check_probability, check_size, checked, refuse_dtype
from milkweed.nn.factory import build_linear
from milkweed.nn.filters.base import check_rate
from milkweed.nn.stepping import Stepper, check_batch_size
from milkweed.nn.structured_linear import StructuredLinear


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, dense or structured.

    Args:
        features: In and out.
        hidden: Between.
        linear: The linear layer as plain values, see [`milkweed.nn.build_linear`][]; dense by default.
        dropout: Probability, after the second layer.

    Example:
        >>> mlp = mw.nn.Mlp(64, 256, linear={"name": "monarch", "nblocks": 4})
        >>> mlp(torch.randn(5, 64)).shape
        torch.Size([5, 64])
    """

    @checked
    def __init__(
        self, features: int, hidden: int, linear: Mapping[str, Any] | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_size(features=features, hidden=hidden)
        check_probability(dropout=dropout)
        self.features = features
        spec = {"name": "dense"} if linear is None else linear
        self.up = build_linear(spec, features, hidden)
        self.down = build_linear(spec, hidden, features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension.

        Args:
            x: (..., features).

        Returns:
            (..., features).

        Raises:
            ValueError: The last dimension is not ``features``.
            TypeError: ``x`` is not real floating point.
        """
        fuses = isinstance(self.up, StructuredLinear)
        try:
            hidden = self.up(x, activation="gelu") if fuses else F.gelu(self.up(x))
        except RAW as error:
            check_features("x", x, "features", self.features)
            refuse_dtype(error, "x", x, self.up)
        return self.dropout(self.down(hidden))

    def stepper(self, rate: float = 1.0) -> Stepper:
        """Give the layer as a recurrence without a state, with the parameters as they are now.

        Args:
            rate: Makes no difference, above 0.

        Returns:
            A stepper whose state is None.

        Raises:
            ValueError: The rate is not above 0.
        """
        check_rate(rate)
        return PointwiseStepper(self)


class PointwiseStepper(Stepper):
    """A layer that treats every step by itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).eval().requires_grad_(False)

    def initial_state(self, batch_size: int) -> None:
        """There is no state."""
        check_batch_size(batch_size)

    @torch.no_grad()
    def forward(self, u: Tensor, state: None) -> tuple[Tensor, None]:
        """Apply the layer to one step (B, features), without gradients and dropout."""
        if state is not None:
            raise TypeError(f"state must be None, as initial_state gives it; got {type(state).__name__}")
        if isinstance(self.layer, Mlp):
            check_features("u", u, "features", self.layer.features)
        return self.layer(u), None

    def read(self, u: Tensor, state: None) -> tuple[Tensor, None]:
        """Apply the layer to many steps (B, L, features)."""
        return self.forward(u, state)
