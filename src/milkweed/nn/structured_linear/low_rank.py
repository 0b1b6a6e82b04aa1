"""Linear layer with a low-rank matrix."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight, uniform_with_variance
from milkweed.nn.structured_linear.config import LayerConfig
from milkweed.structures import LowRank, Monarch, add_monarch, project_low_rank


@register("linear", "low_rank")
class LowRankLinear(StructuredLinear):
    """Linear layer through ``rank`` features, with nn.Linear's output variance.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        rank: Features between, at most min(in_features, out_features).
        bias: Whether to add a bias.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: A size is below 1 or the rank out of range.

    Example:
        >>> layer = mw.nn.LowRankLinear(100, 50, rank=4)
        >>> layer(torch.randn(3, 100)).shape, layer.matrix().num_parameters
        (torch.Size([3, 50]), 600)
    """

    takes_updates = True

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_rank(in_features, out_features, rank)
        self.rank = rank
        self.right = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.left = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.reset_parameters()

    @override
    def reset_parameters(self) -> None:
        for factor in (self.right, self.left):
            uniform_with_variance(factor, 3**-0.5 / factor.shape[-1])
        self._reset_bias()

    @override
    def matrix(self) -> LowRank:
        return LowRank(self.left, self.right)

    @override
    def _sum(self, matrix: LowRank, update: Monarch | LowRank) -> tuple[dict[str, Tensor], int]:
        return low_rank_sum(matrix, update)

    @classmethod
    @checked(but=("linear",))
    def from_linear(cls, linear: nn.Linear, rank: int, *, input_covariance: Tensor | None = None) -> Self:
        """Project a dense layer.

        Args:
            linear: The dense layer.
            rank: Features between.
            input_covariance: (in_features, in_features); see `StructuredLinear.from_linear`.

        Returns:
            The layer with the nearest matrix of this rank and everything else as the dense layer.
        """
        found = project_low_rank(dense_weight(linear), rank, input_covariance=input_covariance).matrix
        return cls._from(linear, {"right": found.right, "left": found.left}, rank=rank)

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {"rank": self.rank}


@register("config")
@dataclasses.dataclass(frozen=True)
class LowRankConfig(LayerConfig):
    """Replace by [`milkweed.nn.LowRankLinear`][].

    Args:
        rank: Features between.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256))
        >>> report = mw.convert_(model, {"0": mw.convert.LowRankConfig(rank=16)})
        >>> model[0]
        LowRankLinear(in_features=256, out_features=256, rank=16, bias=True)
    """

    rank: int
    name: ClassVar[str] = "low_rank"


def check_rank(in_features: int, out_features: int, rank: int) -> None:
    """Refuse a rank below 1 or above a size."""
    most = min(in_features, out_features)
    if not 1 <= rank <= most:
        raise ValueError(f"rank must be in 1 .. {most}, the smaller of in_features and out_features; got rank={rank}")


def low_rank_sum(matrix: LowRank, update: Monarch | LowRank) -> tuple[dict[str, Tensor], int]:
    """The factors of a sum as ``left`` and ``right``, and its rank."""
    # A low-rank matrix is a Monarch matrix of one block.
    total = add_monarch(Monarch(matrix.right[None], matrix.left[None]), update)
    return {"right": total.right[0], "left": total.left[0]}, total.right.shape[1]
