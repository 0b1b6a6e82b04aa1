"""Drop-in replacements for ``torch.nn.Linear`` whose matrix is structured."""

from milkweed.nn.structured_linear.adapted import AdaptedLinear
from milkweed.nn.structured_linear.base import StructuredLinear
from milkweed.nn.structured_linear.block_diagonal import BlockDiagonalConfig, BlockDiagonalLinear
from milkweed.nn.structured_linear.butterfly import ButterflyLinear
from milkweed.nn.structured_linear.concat import ConcatLinear
from milkweed.nn.structured_linear.config import LayerConfig
from milkweed.nn.structured_linear.low_rank import LowRankConfig, LowRankLinear
from milkweed.nn.structured_linear.monarch import MonarchConfig, MonarchLinear
from milkweed.nn.structured_linear.pixelfly import PixelflyConfig, PixelflyLinear

__all__ = [
    "AdaptedLinear",
    "BlockDiagonalConfig",
    "BlockDiagonalLinear",
    "ButterflyLinear",
    "ConcatLinear",
    "LayerConfig",
    "LowRankConfig",
    "LowRankLinear",
    "MonarchConfig",
    "MonarchLinear",
    "PixelflyConfig",
    "PixelflyLinear",
    "StructuredLinear",
]
