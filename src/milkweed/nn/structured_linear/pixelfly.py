"""Linear layer with a flat block butterfly plus a low-rank matrix."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight, uniform_with_variance
from milkweed.nn.structured_linear.block_diagonal import check_nblocks
from milkweed.nn.structured_linear.config import LayerConfig
from milkweed.nn.structured_linear.low_rank import check_rank, low_rank_sum
from milkweed.structures import FlatBlockButterfly, LowRank, Monarch, Sum, project_pixelfly


@register("linear", "pixelfly")
class PixelflyLinear(StructuredLinear):
    """Pixelfly: block-sparse weights in a butterfly pattern plus a low-rank matrix.

    Both parts start with half of nn.Linear's output variance.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        nblocks: Block rows and columns, a power of two; sizes that it does not divide are padded.
        bias: Whether to add a bias.
        rank: Of the low-rank part.
        neighbours: Blocks kept in each block row; at most, and by default, log2(nblocks) + 1.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: nblocks is no power of two or above a size, or the rank or the neighbours are out of range.

    Source:
        Chen, Dao et al., Pixelated Butterfly (arXiv 2112.00029); the two parts are added with equal weights instead of
        a learned mixture, which the factors can express themselves.

    Example:
        >>> layer = mw.nn.PixelflyLinear(128, 128, nblocks=8, rank=2)
        >>> layer(torch.randn(3, 128)).shape
        torch.Size([3, 128])
    """

    takes_updates = True

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int = 4,
        bias: bool = True,
        rank: int = 8,
        neighbours: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_nblocks(in_features, out_features, nblocks)
        check_rank(in_features, out_features, rank)
        most = nblocks.bit_length()
        count = most if neighbours is None else neighbours
        if nblocks & (nblocks - 1) or not 1 <= count <= most:
            raise ValueError(
                f"nblocks must be a power of two and neighbours in 1 .. log2(nblocks) + 1; got nblocks={nblocks}, "
                f"neighbours={neighbours}"
            )
        self.nblocks, self.rank, self.neighbours = nblocks, rank, count
        blocks = nblocks, count, -(-out_features // nblocks), -(-in_features // nblocks)
        self.blocks = nn.Parameter(torch.empty(blocks, device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.left = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.reset_parameters()

    @override
    def reset_parameters(self) -> None:
        _, count, _, width = self.blocks.shape
        uniform_with_variance(self.blocks, 1 / (6 * count * width))
        for factor in (self.right, self.left):
            uniform_with_variance(factor, 6**-0.5 / factor.shape[-1])
        self._reset_bias()

    @override
    def matrix(self) -> Sum:
        sparse = FlatBlockButterfly(self.blocks, (self.out_features, self.in_features))
        return Sum((sparse, LowRank(self.left, self.right)))

    @override
    def _sum(self, matrix: Sum, update: Monarch | LowRank) -> tuple[dict[str, Tensor], int]:
        return low_rank_sum(next(term for term in matrix.terms if isinstance(term, LowRank)), update)

    @classmethod
    @checked(but=("linear",))
    def from_linear(
        cls,
        linear: nn.Linear,
        nblocks: int = 4,
        rank: int = 8,
        neighbours: int | None = None,
        *,
        input_covariance: Tensor | None = None,
    ) -> Self:
        """Project a dense layer, fitting the two parts by turns.

        Args:
            linear: The dense layer.
            nblocks: Block rows and columns, a power of two.
            rank: Of the low-rank part.
            neighbours: Blocks kept in each block row.
            input_covariance: (in_features, in_features); see `StructuredLinear.from_linear`.

        Returns:
            The layer with a near Pixelfly matrix and everything else as the dense layer.
        """
        weight = dense_weight(linear)
        sparse, smooth = project_pixelfly(
            weight, nblocks, rank, neighbours, input_covariance=input_covariance
        ).matrix.terms
        assert isinstance(sparse, FlatBlockButterfly)
        assert isinstance(smooth, LowRank)
        factors = {"blocks": sparse.blocks, "right": smooth.right, "left": smooth.left}
        return cls._from(linear, factors, nblocks=nblocks, rank=rank, neighbours=neighbours)

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {"nblocks": self.nblocks, "rank": self.rank, "neighbours": self.neighbours}


@register("config")
@dataclasses.dataclass(frozen=True)
class PixelflyConfig(LayerConfig):
    """Replace by [`milkweed.nn.PixelflyLinear`][].

    Args:
        nblocks: Block rows and columns, a power of two.
        rank: Of the low-rank part.
        neighbours: Blocks in each block row.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256))
        >>> report = mw.convert_(model, {"0": mw.convert.PixelflyConfig(nblocks=8, rank=4)})
        >>> model[0]
        PixelflyLinear(in_features=256, out_features=256, nblocks=8, rank=4, neighbours=4, bias=True)
    """

    nblocks: int = 4
    rank: int = 8
    neighbours: int | None = None
    name: ClassVar[str] = "pixelfly"
