"""Recovering the factors of a product of two Monarch matrices, against a singular value decomposition."""

from __future__ import annotations

import torch

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register
from milkweed.structures import Monarch, factorize_monarch_product

_TOLERANCE = 1e-9


def build(size: Size) -> Pair:
    """Draw a product of two square Monarch matrices in float64 and decompose it in both ways.

    Both sides multiply their factors out again, which is what is compared with the product.

    Args:
        size: ``features`` n and ``block_size``, which divides it.

    Returns:
        The pair.
    """
    generator = torch.Generator().manual_seed(0)
    n, b = size["features"], size["block_size"]
    m = n // b

    def draw() -> Monarch:
        shapes = (b, m, m), (m, b, b)
        return Monarch(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))

    dense = draw().to_dense() @ draw().to_dense().mT

    def ours() -> Outputs:
        return {"output": factorize_monarch_product(dense, b).matrix.to_dense()}

    def baseline() -> Outputs:
        u, s, vh = torch.linalg.svd(dense)
        return {"output": (u * s) @ vh}

    return Pair(ours, baseline, lambda: {"output": dense}, _TOLERANCE)


register(
    Case(
        "factorize-monarch-product",
        "the factors of M1 M2* from its entries; a ratio below 1 is what they cost beyond an SVD",
        "the dense SVD of the same matrix, which finds no such factors",
        Figure.FORWARD,
        build,
        {"features": 256, "block_size": 16},
        {"features": 16, "block_size": 4},
    )
)
