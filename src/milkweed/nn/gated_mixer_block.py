"""The block of M2-BERT: a gated mixer and a feed-forward layer."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._arguments import check_features, checked
from milkweed.nn.block_diagonal_glu import BlockDiagonalGlu
from milkweed.nn.gated_mixer import GatedMixer
from milkweed.nn.stepping import SurroundedStepper


class GatedMixerBlock(nn.Module):
    """The block of M2-BERT: ``norm(mlp(y) + y)`` with ``y = mixer(x)``, and no skip around the mixer.

    Args:
        d_model: D, channels in and out.
        l_max: Longest sequence.
        d_hidden: Channels inside the feed-forward layer; 4 d_model by default.
        nblocks: Blocks of its matrices.
        dropout: Probability, inside the feed-forward layer.
        norm_eps: Added to the variance in the block's norm.
        device: Where parameters live.
        dtype: Their dtype.
        **mixer: Further arguments of [`milkweed.nn.GatedMixer`][].

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), its public M2-BERT.

    Example:
        >>> block = mw.nn.GatedMixerBlock(16, l_max=100, d_hidden=32, bidirectional=True)
        >>> block(torch.randn(2, 100, 16)).shape
        torch.Size([2, 100, 16])
    """

    @checked(but=("dropout",))
    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        d_hidden: int | None = None,
        nblocks: int = 4,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **mixer: Any,
    ) -> None:
        super().__init__()
        if not 0 <= norm_eps < math.inf:
            raise ValueError(f"norm_eps must be at least 0 and finite; got {norm_eps}")
        if d_hidden is not None and d_hidden < 1:
            raise ValueError(f"d_hidden must be at least 1; got {d_hidden}")
        self.d_model = d_model
        self.mixer = GatedMixer(d_model, l_max, device=device, dtype=dtype, **mixer)
        hidden = 4 * d_model if d_hidden is None else d_hidden
        self.mlp = BlockDiagonalGlu(d_model, hidden, nblocks, dropout, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(d_model, eps=norm_eps, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for part in (self.mixer, self.mlp, self.norm):
            part.reset_parameters()

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (..., L, d_model).
            lengths: As in [`milkweed.nn.GatedMixer`][].

        Returns:
            (..., L, d_model).
        """
        check_features("x", x, "d_model", self.mixer.d_model)
        return self._after_mixer(self.mixer(x, lengths=lengths))

    def _after_mixer(self, y: Tensor) -> Tensor:
        """Apply what follows the mixer to its output (..., d_model), to every step by itself."""
        return self.norm(self.mlp(y) + y)

    def stepper(self, rate: float = 1.0) -> GatedMixerBlockStepper:
        """Give a causal block step by step, with the parameters as they are now.

        Args:
            rate: As in [`milkweed.nn.GatedMixer`][].

        Returns:
            A stepper over (B, d_model), with the mixer's state.
        """
        return GatedMixerBlockStepper(self, rate)


class GatedMixerBlockStepper(SurroundedStepper):
    """A causal block step by step."""

    def __init__(self, block: GatedMixerBlock, rate: float = 1.0) -> None:
        super().__init__(block.mixer.stepper(rate))
        self.block = copy.deepcopy(block).eval().requires_grad_(False)

    def after(self, y: Tensor, u: Tensor) -> Tensor:
        """Apply what follows the mixer to its output y (B, L, d_model)."""
        return self.block._after_mixer(y)
