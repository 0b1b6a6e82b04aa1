"""An untrained linear layer with a structured update beside it."""

from __future__ import annotations

import math

from torch import Tensor, nn
from typing_extensions import override

from milkweed._arguments import RAW, checked, refuse_features
from milkweed.nn.structured_linear.base import StructuredLinear
from milkweed.nn.structured_linear.concat import ConcatLinear
from milkweed.ops._common import autocast_dtype

Update = StructuredLinear | ConcatLinear


class AdaptedLinear(nn.Module):
    """A linear layer plus a structured update: the layer of W + scale · M.

    The two are applied side by side, so W may be of any kind, dense, structured or quantised, and is never touched. In
    a ``state_dict`` the layer's own parameters stand under ``base``, those of M under ``update``.

    Args:
        base: The layer that is adapted; not copied.
        update: M, without bias. It computes in its own dtype: a float32 update of a bfloat16 layer learns in steps that
            bfloat16 could not hold.
        scale: Multiplies M.

    Raises:
        ValueError: The sizes of the two differ, the update has a bias, or the scale is not finite.

    Source:
        MoRe (arXiv 2408.17383) with a Monarch update; LoRA (arXiv 2106.09685) with one of a single block.

    Example:
        >>> base = nn.Linear(64, 32)
        >>> layer = mw.nn.AdaptedLinear(base, mw.nn.MonarchLinear(64, 32, nblocks=4, bias=False, init="zero"))
        >>> x = torch.randn(2, 64)
        >>> torch.equal(layer(x), base(x))  # the update starts at zero
        True
    """

    @checked
    def __init__(self, base: nn.Module, update: Update, scale: float = 1.0) -> None:
        super().__init__()
        self.in_features, self.out_features = update.in_features, update.out_features
        for name in ("in_features", "out_features"):
            size = getattr(base, name, getattr(self, name))
            if size != getattr(self, name):
                raise ValueError(f"update must have the sizes of base; got {name} {getattr(self, name)} and {size}")
        if any(name.rpartition(".")[2] == "bias" for name, _ in update.named_parameters()):
            raise ValueError("update must have no bias; train the bias of base")
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite; got {scale}")
        self.base, self.update, self.scale = base, update, float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its update to the last dimension.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features), in the dtype that the base alone gives.

        Raises:
            ValueError: The last dimension is not ``in_features``.
            TypeError: ``x`` is not real floating point.
        """
        try:
            y: Tensor = self.base(x)
        except RAW as error:
            refuse_features(error, "x", x, "in_features", self.in_features)
        if autocast_dtype(x) is None:
            x = x.to(next(self.update.parameters()).dtype)
        return y + (self.scale * self.update(x)).to(y.dtype)

    @override
    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"
