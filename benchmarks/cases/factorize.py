"""Recovering the factors of a product of two Monarch matrices, against a singular value decomposition."""

from __future__ import annotations

import torch

from benchmarks.case import Case, Figure, Outputs, Size, Work, compare, draw, register
from milkweed.structures import Monarch, factorize_monarch_product

_TOLERANCE = 1e-9


def build(size: Size) -> Work:
    """A product of two square Monarch matrices in float64; both sides multiply what they find out again."""
    n, b = size["features"], size["block_size"]
    m = n // b

    def matrix() -> Monarch:
        return Monarch(draw(b, m, m, dtype=torch.float64), draw(m, b, b, dtype=torch.float64))

    dense = matrix().to_dense() @ matrix().to_dense().mT

    def ours() -> Outputs:
        return {"output": factorize_monarch_product(dense, b).matrix.to_dense()}

    def peer() -> Outputs:
        u, s, vh = torch.linalg.svd(dense)
        return {"output": (u * s) @ vh}

    # To multiply four factors out; an operation in float64 counts as two in float32.
    return compare(
        ours, peer, lambda: {"output": dense}, _TOLERANCE, flops=2 * 2 * n * 2 * n * (m + b), bytes=2 * dense.nbytes
    )


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
