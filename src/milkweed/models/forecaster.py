"""A sequence model that continues its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import checked
from milkweed.models.base import Model, check_inputs
from milkweed.models.sequence_model import SequenceModel
from milkweed.nn.lengths import valid_steps, without_padding


class Forecaster(Model):
    """Reads a context and as many empty steps as are asked for, and gives its outputs there.

    Args:
        d_input: Features per step; the first ``d_output`` are those that are forecast.
        d_output: Features that are forecast.
        horizon: Steps that are forecast.
        d_model: Channels inside.
        depth: Number of blocks.
        layer: The sequence layer as plain values, as in [`milkweed.models.SequenceModel`][].
        norm: As there.
        prenorm: As there.
        dropout: As there.
        instance_norm: Whether each feature is standardised over the valid steps of its own context, and the forecast
            scaled back: series whose level and range change are forecast as if they did not.

    Raises:
        ValueError: An option is out of range.

    Source:
        The forecasting experiments of S4 (arXiv 2111.00396, appendix D.4), which mask the steps that are asked for; the
        normalisation of each instance, without parameters, is that of RevIN (Kim et al., ICLR 2022).

    Example:
        >>> model = mw.models.Forecaster(3, 1, horizon=24, d_model=16, depth=2)
        >>> model(torch.randn(4, 96, 3)).shape
        torch.Size([4, 24, 1])
    """

    @checked(but=("layer",))
    def __init__(
        self,
        d_input: int,
        d_output: int,
        horizon: int,
        d_model: int = 64,
        depth: int = 2,
        layer: Mapping[str, Any] | None = None,
        norm: str = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        instance_norm: bool = True,
    ) -> None:
        inner = SequenceModel(
            d_input, d_output, d_model, depth, layer, norm=norm, prenorm=prenorm, dropout=dropout, pooling="none"
        )
        shared = {name: inner.options[name] for name in ("d_model", "depth", "layer", "norm", "prenorm", "dropout")}
        super().__init__(d_input=d_input, d_output=d_output, horizon=horizon, instance_norm=instance_norm, **shared)
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1; got {horizon}")
        if d_output > d_input:
            raise ValueError(
                f"d_output={d_output} must be at most d_input={d_input}: what is forecast is among what is read"
            )
        self.d_input, self.d_output, self.horizon, self.instance_norm = d_input, d_output, horizon, instance_norm
        self.model = inner

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            inputs: (B, L, d_input).
            lengths: (B,) integers, the valid steps of right-padded contexts; all of them by default.

        Returns:
            (B, horizon, d_output).
        """
        check_inputs(inputs, self.d_input)
        x = without_padding(inputs, lengths)
        valid = None if lengths is None else valid_steps(lengths, x.shape[1])[..., None]
        mean, scale = _moments(x, valid) if self.instance_norm else (x.new_zeros(1, 1, 1), x.new_ones(1, 1, 1))
        x = (x - mean) / scale
        # The steps that are asked for follow the last valid one of each context.
        x = F.pad(x if valid is None else torch.where(valid, x, 0), (0, 0, 0, self.horizon))
        if lengths is None:
            y: Tensor = self.model(x)[:, -self.horizon :]
        else:
            places = lengths.to(x.device)[:, None] + torch.arange(self.horizon, device=x.device)
            outputs = self.model(x, lengths + self.horizon)
            y = outputs.gather(1, places[..., None].expand(-1, -1, self.d_output))
        if self.instance_norm:
            y = y * scale[..., : self.d_output] + mean[..., : self.d_output]
        return y


def _moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and scale of each feature over the valid steps, (B, 1, D)."""
    weights = torch.ones_like(x[..., :1]) if valid is None else valid.to(x.dtype)
    count = weights.sum(1, keepdim=True)
    mean = (x * weights).sum(1, keepdim=True) / count
    variance = ((x - mean).square() * weights).sum(1, keepdim=True) / count
    return mean, (variance + 1e-5).sqrt()
