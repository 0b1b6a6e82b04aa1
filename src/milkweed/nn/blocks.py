"""Residual blocks that networks are stacked from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from milkweed._suggest import unknown

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
