"""Residual blocks that networks are stacked from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._arguments import RAW, check_features, check_probability, check_size, checked, refuse_features
from milkweed._suggest import unknown
from milkweed.nn.lengths import check_lengths, valid_steps
from milkweed.nn.rates import rate_options
from milkweed.nn.stepping import SurroundedStepper

NORMS = ("batch", "layer")


class SequenceNorm(nn.Module):
    """Layer or batch normalisation of (B, L, d_model) sequences.

    Args:
        kind: ``"layer"`` or ``"batch"``.
        d_model: Channels.

    Raises:
        ValueError: The kind is unknown.

    Example:
        >>> x = mw.nn.SequenceNorm("layer", 16)(3 + torch.randn(2, 50, 16))
        >>> bool(x.mean().abs() < 0.1)
        True
    """

    @checked
    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        check_size(d_model=d_model)
        if kind not in NORMS:
            raise ValueError(unknown("kind of norm", kind, NORMS))
        self.d_model = d_model
        self.norm: nn.Module = nn.LayerNorm(d_model) if kind == "layer" else nn.BatchNorm1d(d_model)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: (B, L, d_model).
            lengths: (B,) valid steps of right-padded sequences. Batch statistics are those of valid steps alone, and
                padding comes out as zero.

        Returns:
            (B, L, d_model).

        Raises:
            ValueError: The last dimension is not ``d_model``, or the lengths describe no such batch.
            TypeError: ``x`` is not real floating point.
        """
        if lengths is not None and not isinstance(lengths, Tensor):
            check_lengths(lengths, x)
        if not isinstance(self.norm, nn.BatchNorm1d):
            try:
                return self.norm(x)
            except RAW as error:
                refuse_features(error, "x", x, "d_model", self.d_model)
        check_features("x", x, "d_model", self.d_model)
        if lengths is not None:
            check_lengths(lengths, x)
        if lengths is None or not self.norm.training:
            normed: Tensor = self.norm(x.flatten(0, -2)).view_as(x)
            return normed
        return _batch_norm_of_valid(self.norm, x, lengths)


def _batch_norm_of_valid(norm: nn.BatchNorm1d, x: Tensor, lengths: Tensor) -> Tensor:
    """Batch norm in training, with statistics of valid steps; sums instead of a selection keep every shape known."""
    valid = valid_steps(lengths.to(x.device), x.shape[1])[..., None]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = valid.sum()
    mean = wide.masked_fill(~valid, 0).sum((0, 1)) / count
    centred = (wide - mean).masked_fill(~valid, 0)
    variance = centred.square().sum((0, 1)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            weight = 1 / norm.num_batches_tracked.to(wide.dtype) if norm.momentum is None else norm.momentum
            unbiased = variance * (count / (count - 1).clamp_min(1))
            for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running.copy_(running + weight * (new.to(running.dtype) - running))
    normed = centred * torch.rsqrt(variance + norm.eps)
    if norm.affine:
        normed = (normed * norm.weight + norm.bias).masked_fill(~valid, 0)
    return normed.to(x.dtype)


class ResidualBlock(nn.Module):
    """``x + dropout(layer(norm(x)))``, or ``norm(x + dropout(layer(x)))`` with ``prenorm=False``.

    Args:
        layer: Maps (B, L, d_model) to (B, L, d_model).
        d_model: Channels.
        norm: ``"layer"`` or ``"batch"``.
        prenorm: Where the norm stands.
        dropout: Probability, on the layer's output.

    Example:
        >>> block = mw.nn.ResidualBlock(mw.nn.S4D(16), 16, norm="batch")
        >>> block(torch.randn(2, 50, 16)).shape
        torch.Size([2, 50, 16])
    """

    @checked
    def __init__(
        self, layer: nn.Module, d_model: int, *, norm: str = "layer", prenorm: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_probability(dropout=dropout)
        self.norm = SequenceNorm(norm, d_model)
        self.layer = layer
        self.dropout = nn.Dropout(dropout)
        self.prenorm = prenorm

    def forward(
        self, x: Tensor, *, lengths: Tensor | None = None, rate: float | Sequence[float] = 1.0, **options: Any
    ) -> Tensor:
        """Apply the block.

        Args:
            x: (B, L, d_model).
            lengths: (B,) valid steps of right-padded sequences, for the norm and the layer.
            rate: Step length relative to training, for the layer; one value per axis for a ``S4ND``.
            **options: Passed to the layer.

        Returns:
            (B, L, d_model).

        Raises:
            ValueError: The rate is not 1, and the layer knows no time but steps.
        """
        options |= rate_options(self.layer, rate)
        if lengths is not None:
            options["lengths"] = lengths
        if self.prenorm:
            return x + self.dropout(self.layer(self.norm(x, lengths), **options))
        return self.norm(x + self.dropout(self.layer(x, **options)), lengths)

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


class BlockStepper(SurroundedStepper):
    """A residual block as a recurrence."""

    def __init__(self, block: ResidualBlock, rate: float = 1.0) -> None:
        super().__init__(block.layer.stepper(rate))  # type: ignore[operator]
        self.norm, self.prenorm = copy.deepcopy(block.norm).eval().requires_grad_(False), block.prenorm

    def before(self, u: Tensor) -> Tensor:
        """Normalise u (B, L, d_model), if that comes first."""
        try:
            return self.norm(u) if self.prenorm else u
        except RAW as error:
            refuse_features(error, "u", u, "d_model", self.norm.d_model)

    def after(self, y: Tensor, u: Tensor) -> Tensor:
        """Add the input u (B, L, d_model) to y, and normalise if that comes last."""
        return u + y if self.prenorm else self.norm(u + y)
