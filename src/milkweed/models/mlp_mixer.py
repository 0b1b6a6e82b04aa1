"""MLP-Mixer for sequences, dense or structured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from milkweed._arguments import checked, refuse_dtype
from milkweed.models.base import Model, check_inputs
from milkweed.models.sequence_model import pool
from milkweed.nn import Mlp, check_spec
from milkweed.nn.factory import check_linear
from milkweed.nn.lengths import without_padding


class MixerBlock(nn.Module):
    """One MLP over time and one over channels, each in a residual branch."""

    def __init__(
        self,
        length: int,
        d_model: int,
        token_dim: int,
        channel_dim: int,
        linear: Mapping[str, Any],
        token_linear: Mapping[str, Any],
        dropout: float,
    ) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.tokens = Mlp(length, token_dim, token_linear, dropout)
        self.channels = Mlp(d_model, channel_dim, linear, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, L, d_model)."""
        x = x + self.tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.channel_norm(x))


class MlpMixer(Model):
    """MLP-Mixer on sequences of one fixed length.

    Args:
        d_input: Features per step.
        d_output: Outputs per sequence.
        length: L.
        d_model: Channels inside.
        depth: Number of blocks.
        token_dim: Hidden size of the MLPs over time; ``2 * length`` by default.
        channel_dim: Hidden size of the MLPs over channels; ``2 * d_model`` by default.
        linear: The linear layer of the MLPs over channels as plain values: ``{"name": "dense"}`` or, e.g.,
            ``{"name": "monarch", "nblocks": 4}``.
        dropout: Probability, at the end of each MLP.
        token_linear: The linear layer of the MLPs over time, e.g. dense for short sequences; ``linear`` by default.

    Raises:
        ValueError: A size is below 1.

    Source:
        MLP-Mixer (arXiv 2105.01601) without patches; Monarch (arXiv 2204.00595, section 4.1) replaces its layers.

    Example:
        >>> model = mw.models.MlpMixer(1, 10, length=64, d_model=16, depth=1, linear={"name": "monarch", "nblocks": 2})
        >>> model(torch.randn(2, 64, 1)).shape
        torch.Size([2, 10])
    """

    @checked(but=("linear",))
    def __init__(
        self,
        d_input: int,
        d_output: int,
        length: int,
        d_model: int = 128,
        depth: int = 4,
        token_dim: int | None = None,
        channel_dim: int | None = None,
        linear: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        token_linear: Mapping[str, Any] | None = None,
    ) -> None:
        linear = check_spec("linear", {"name": "dense"} if linear is None else linear)
        token_linear = token_linear if token_linear is None else check_linear("token_linear", token_linear)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            length=length,
            d_model=d_model,
            depth=depth,
            token_dim=token_dim,
            channel_dim=channel_dim,
            linear=linear,
            dropout=dropout,
            token_linear=token_linear,
        )
        for name, value in (
            ("d_input", d_input),
            ("d_output", d_output),
            ("length", length),
            ("d_model", d_model),
            ("depth", depth),
            ("token_dim", token_dim),
            ("channel_dim", channel_dim),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.d_input, self.length = d_input, length
        self.encoder = nn.Linear(d_input, d_model)
        self.blocks = nn.ModuleList(
            MixerBlock(
                length,
                d_model,
                token_dim or 2 * length,
                channel_dim or 2 * d_model,
                linear,
                token_linear or linear,
                dropout,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, d_output)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, length, d_input).
            lengths: (B,) valid steps of right-padded sequences. Padding is read as zeros, which the MLPs see, and left
                out of the pooling.

        Returns:
            (B, d_output).

        Raises:
            ValueError: The inputs have another length or feature size.
        """
        check_inputs(inputs, self.d_input)
        if inputs.shape[1] != self.length:
            raise ValueError(f"this MlpMixer was built for length={self.length}; got inputs {tuple(inputs.shape)}")
        try:
            x = self.encoder(without_padding(inputs, lengths))
        except RuntimeError as error:
            refuse_dtype(error, "inputs", inputs, self.encoder)
        for block in self.blocks:
            x = block(x)
        return self.head(pool(self.norm(x), "mean", lengths))
