"""Matrices as objects and their algorithms."""

from milkweed.structures.base import Product, StructuredMatrix, Sum
from milkweed.structures.block_diagonal import BlockDiagonal
from milkweed.structures.causal import BivariateBasis, CausalBasis, ChebyshevBasis, KroneckerBasis, causal_product
from milkweed.structures.chain import Chain
from milkweed.structures.diagonal import Diagonal
from milkweed.structures.factorize import Factorization, factorize_monarch_product
from milkweed.structures.flat_butterfly import FlatBlockButterfly
from milkweed.structures.low_rank import LowRank
from milkweed.structures.monarch import Monarch, monarch_shapes
from milkweed.structures.monarch_sum import add_monarch
from milkweed.structures.permutation import Permutation
from milkweed.structures.project import (
    Projection,
    project_block_diagonal,
    project_chain,
    project_circulant,
    project_diagonal,
    project_flat_butterfly,
    project_low_rank,
    project_pixelfly,
    project_toeplitz,
)
from milkweed.structures.project_monarch import project_monarch
from milkweed.structures.serialize import load, save
from milkweed.structures.toeplitz import Circulant, Toeplitz
from milkweed.structures.transforms import (
    monarch_acdc,
    monarch_circulant,
    monarch_dct,
    monarch_dft,
    monarch_dst,
    monarch_fastfood,
    monarch_hadamard,
    monarch_hd,
    monarch_toeplitz,
)

__all__ = [
    "BivariateBasis",
    "BlockDiagonal",
    "CausalBasis",
    "Chain",
    "ChebyshevBasis",
    "Circulant",
    "Diagonal",
    "Factorization",
    "FlatBlockButterfly",
    "KroneckerBasis",
    "LowRank",
    "Monarch",
    "Permutation",
    "Product",
    "Projection",
    "StructuredMatrix",
    "Sum",
    "Toeplitz",
    "add_monarch",
    "causal_product",
    "factorize_monarch_product",
    "load",
    "monarch_acdc",
    "monarch_circulant",
    "monarch_dct",
    "monarch_dft",
    "monarch_dst",
    "monarch_fastfood",
    "monarch_hadamard",
    "monarch_hd",
    "monarch_shapes",
    "monarch_toeplitz",
    "project_block_diagonal",
    "project_chain",
    "project_circulant",
    "project_diagonal",
    "project_flat_butterfly",
    "project_low_rank",
    "project_monarch",
    "project_pixelfly",
    "project_toeplitz",
    "save",
]
