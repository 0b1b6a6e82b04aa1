"""Matrices as objects and their algorithms."""

from milkweed.structures.base import StructuredMatrix
from milkweed.structures.block_diagonal import BlockDiagonal
from milkweed.structures.chain import Chain
from milkweed.structures.diagonal import Diagonal
from milkweed.structures.files import load, save
from milkweed.structures.flat_butterfly import FlatBlockButterfly
from milkweed.structures.low_rank import LowRank
from milkweed.structures.monarch import Monarch
from milkweed.structures.permutation import Permutation
from milkweed.structures.product import Product, Sum
from milkweed.structures.toeplitz import Circulant, Toeplitz

__all__ = [
    "BlockDiagonal",
    "Chain",
    "Circulant",
    "Diagonal",
    "FlatBlockButterfly",
    "LowRank",
    "Monarch",
    "Permutation",
    "Product",
    "StructuredMatrix",
    "Sum",
    "Toeplitz",
    "load",
    "save",
]
