"""Linear layer with a block-diagonal matrix."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight, uniform_with_variance
from milkweed.nn.structured_linear.config import LayerConfig
from milkweed.nn.structured_linear.hidden_units import BlockColumns, BlockRows, GroupedUnits
from milkweed.structures import BlockDiagonal, Chain, project_block_diagonal


@register("linear", "block_diagonal")
class BlockDiagonalLinear(StructuredLinear):
    """Linear layer with a block-diagonal matrix: ``nblocks`` groups of features that do not meet.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        nblocks: Blocks; sizes that it does not divide are padded.
        bias: Whether to add a bias.
        shuffle: Whether the outputs of the groups are interleaved, so that the groups of a next layer mix them.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: A size is below 1, or there are more blocks than features.

    Source:
        One factor of a Monarch matrix (arXiv 2204.00595, section 3), with nn.Linear's output variance.

    Example:
        >>> layer = mw.nn.BlockDiagonalLinear(64, 128, nblocks=4, bias=False)
        >>> sum(p.numel() for p in layer.parameters()), 64 * 128
        (2048, 8192)
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int = 4,
        bias: bool = True,
        shuffle: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_nblocks(in_features, out_features, nblocks)
        self.nblocks, self.shuffle = nblocks, shuffle
        shape = nblocks, -(-out_features // nblocks), -(-in_features // nblocks)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @override
    def reset_parameters(self) -> None:
        uniform_with_variance(self.weight, 1 / (3 * self.weight.shape[-1]))
        self._reset_bias()

    @override
    def matrix(self) -> BlockDiagonal | Chain:
        crop = self.out_features, self.in_features
        # A chain of one factor is a block-diagonal matrix with its outputs interleaved.
        return Chain((self.weight,), crop) if self.shuffle else BlockDiagonal(self.weight, crop)

    def _affine(self, x: Tensor, activation: str | None) -> Tensor:
        if self.shuffle:
            return super()._affine(x, activation)
        k, q, p = self.weight.shape
        product = partial(ops.block_diagonal_mm, weight=self.weight, activation=activation)
        return self._by_operation(product, x, (k * q, k * p))

    @classmethod
    @checked(but=("linear",))
    def from_linear(cls, linear: nn.Linear, nblocks: int = 4, *, input_covariance: Tensor | None = None) -> Self:
        """Project a dense layer.

        Args:
            linear: The dense layer.
            nblocks: Blocks.
            input_covariance: (in_features, in_features); see `StructuredLinear.from_linear`.

        Returns:
            The layer with the nearest block-diagonal matrix, not shuffled, and everything else as the dense layer.
        """
        found = project_block_diagonal(dense_weight(linear), nblocks, input_covariance=input_covariance)
        return cls._from(linear, {"weight": found.matrix.weight}, nblocks=nblocks)

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {"nblocks": self.nblocks} | ({"shuffle": True} if self.shuffle else {})


@register("config")
@dataclasses.dataclass(frozen=True)
class BlockDiagonalConfig(LayerConfig):
    """Replace by [`milkweed.nn.BlockDiagonalLinear`][].

    Args:
        nblocks: Blocks.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 10))
        >>> report = mw.convert_(model, {"0": mw.convert.BlockDiagonalConfig(nblocks=4)})
        >>> model[0]
        BlockDiagonalLinear(in_features=256, out_features=256, nblocks=4, bias=True)
    """

    nblocks: int = 4
    name: ClassVar[str] = "block_diagonal"

    @override
    def hidden_units(self, weight: Tensor, covariance: Tensor, energy: float, *, rows: bool) -> GroupedUnits:
        return (BlockRows if rows else BlockColumns)(weight, covariance, energy, self.nblocks)


def check_nblocks(in_features: int, out_features: int, nblocks: int) -> None:
    """Refuse a number of blocks below 1 or above a size."""
    for name, value in (("in_features", in_features), ("out_features", out_features)):
        if not 1 <= nblocks <= value:
            raise ValueError(f"nblocks must be in 1 .. {name}={value}; got nblocks={nblocks}")
