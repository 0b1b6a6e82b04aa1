"""Causal Monarch maps: products of sequences in which no output depends on the future."""

from milkweed.structures.causal.base import CausalBasis, balanced_digits, causal_product, triangular
from milkweed.structures.causal.bivariate import BivariateBasis
from milkweed.structures.causal.chebyshev import ChebyshevBasis
from milkweed.structures.causal.kronecker import KroneckerBasis
from milkweed.structures.causal.online import CausalStream, ProductState

__all__ = [
    "BivariateBasis",
    "CausalBasis",
    "CausalStream",
    "ChebyshevBasis",
    "KroneckerBasis",
    "ProductState",
    "balanced_digits",
    "causal_product",
    "triangular",
]
