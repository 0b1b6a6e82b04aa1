"""Drop-in replacements for ``torch.nn.Linear`` whose matrix is structured."""

from milkweed.nn.structured_linear.adapted import AdaptedLinear
from milkweed.nn.structured_linear.base import StructuredLinear
from milkweed.nn.structured_linear.block_diagonal import BlockDiagonalLinear
from milkweed.nn.structured_linear.butterfly import ButterflyLinear
from milkweed.nn.structured_linear.concat import ConcatLinear
from milkweed.nn.structured_linear.low_rank import LowRankLinear
from milkweed.nn.structured_linear.monarch import MonarchLinear
from milkweed.nn.structured_linear.pixelfly import PixelflyLinear

__all__ = [
    "AdaptedLinear",
    "BlockDiagonalLinear",
    "ButterflyLinear",
    "ConcatLinear",
    "LowRankLinear",
    "MonarchLinear",
    "PixelflyLinear",
    "StructuredLinear",
]
