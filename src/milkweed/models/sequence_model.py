"""A stack of sequence layers with an encoder, pooling and a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._suggest import unknown
from milkweed.models.base import Model, check_inputs
from milkweed.nn import ResidualBlock, SequenceNorm, build_sequence_layer, check_spec

POOLINGS = ("last", "mean", "none")


class SequenceModel(Model):
    """Encoder → residual blocks of a sequence layer → pooling → head.

    Args:
        d_input: Features per step.
        d_output: Outputs per sequence, or per step with ``pooling="none"``.
        d_model: Channels inside.
        depth: Number of blocks.
        layer: The sequence layer as plain values, e.g. ``{"name": "s4d", "d_state": 64, "bidirectional": True}``.
        norm: ``"layer"`` or ``"batch"``.
        prenorm: Norm before the layer (and once before the head), or after the residual sum.
        dropout: Probability, on every layer's output.
        pooling: ``"mean"`` or ``"last"`` over the valid steps, or ``"none"``.

    Raises:
        ValueError: An option is unknown or out of range.

    Source:
        The backbone of S4 (arXiv 2111.00396) and S4D (arXiv 2206.11893) experiments.
    """

    def __init__(
        self,
        d_input: int,
        d_output: int,
        d_model: int = 128,
        depth: int = 4,
        layer: Mapping[str, Any] | None = None,
        norm: str = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        pooling: str = "mean",
    ) -> None:
        layer = check_spec("layer", {"name": "s4d"} if layer is None else layer)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            d_model=d_model,
            depth=depth,
            layer=layer,
            norm=norm,
            prenorm=prenorm,
            dropout=dropout,
            pooling=pooling,
        )
        for name, value in (("d_input", d_input), ("d_output", d_output), ("d_model", d_model), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if pooling not in POOLINGS:
            raise ValueError(unknown("pooling", pooling, POOLINGS))
        self.d_input, self.pooling = d_input, pooling
        self.encoder = nn.Linear(d_input, d_model)
        self.blocks = nn.ModuleList(
            ResidualBlock(build_sequence_layer(layer, d_model), d_model, norm=norm, prenorm=prenorm, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = SequenceNorm(norm, d_model) if prenorm else nn.Identity()
        self.head = nn.Linear(d_model, d_output)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L, d_input).
            lengths: (B,) integers, the valid steps of right-padded sequences; all of them by default.

        Returns:
            (B, d_output), or (B, L, d_output) with ``pooling="none"``.
        """
        check_inputs(inputs, self.d_input)
        x = self.encoder(inputs)
        for block in self.blocks:
            x = block(x, lengths=lengths)
        return self.head(pool(self.norm(x), self.pooling, lengths))


def pool(x: Tensor, kind: str, lengths: Tensor | None = None) -> Tensor:
    """Reduce a sequence to one vector.

    Args:
        x: (B, L, D).
        kind: ``"mean"``, ``"last"`` or ``"none"``.
        lengths: (B,) valid steps.

    Returns:
        (B, D), or ``x`` itself with ``"none"``.
    """
    if kind == "none":
        return x
    if lengths is None:
        return x.mean(1) if kind == "mean" else x[:, -1]
    if kind == "last":
        return x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(padding[..., None], 0).sum(1) / lengths[:, None].to(x.dtype)
