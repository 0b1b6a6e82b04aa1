"""Linear layer with a low-rank matrix."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight, uniform_with_variance
from milkweed.structures import LowRank, project_low_rank


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
    """

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

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for factor in (self.right, self.left):
            uniform_with_variance(factor, 3**-0.5 / factor.shape[-1])
        self._reset_bias()

    def matrix(self) -> LowRank:
        """The weight.

        Returns:
            (out_features, in_features), made of the parameters themselves.
        """
        return LowRank(self.left, self.right)

    @classmethod
    @checked(but=("linear",))
    def from_linear(cls, linear: nn.Linear, rank: int, *, input_covariance: Tensor | None = None) -> Self:
        """Project a dense layer.

        Args:
            linear: The dense layer.
            rank: Features between.
            input_covariance: (in_features, in_features), E[x xᵀ] of the layer's inputs; the outputs are then kept
                rather than the weight.

        Returns:
            The layer with the nearest matrix of this rank and everything else as the dense layer.
        """
        found = project_low_rank(dense_weight(linear), rank, input_covariance=input_covariance).matrix
        return cls._from(linear, {"right": found.right, "left": found.left}, rank=rank)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's options beside sizes and bias; see the base class."""
        return {"rank": self.rank}


def check_rank(in_features: int, out_features: int, rank: int) -> None:
    """Refuse a rank that the sizes cannot have.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        rank: Features between.

    Raises:
        ValueError: It is below 1 or above a size.
    """
    most = min(in_features, out_features)
    if not 1 <= rank <= most:
        raise ValueError(f"rank must be in 1 .. {most}, the smaller of in_features and out_features; got rank={rank}")
