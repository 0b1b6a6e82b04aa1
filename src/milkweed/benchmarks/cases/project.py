"""Projecting a dense matrix to the nearest Monarch matrix, against full decompositions of its slices."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register
from milkweed.structures import project_monarch

# What is compared is the relative error of the projection, which both ways must reach; their factors differ.
_TOLERANCE = 1e-5


def slices(dense: Tensor, nblocks: int) -> Tensor:
    """Take the parts of a matrix that a Monarch matrix approximates by itself, each of its own low rank.

    Args:
        dense: (n, n), n a multiple of the square of nblocks.
        nblocks: Blocks per factor.

    Returns:
        (nblocks, nblocks, n / nblocks, n / nblocks).
    """
    block = dense.shape[0] // nblocks
    return dense.view(block, nblocks, nblocks, block).permute(1, 2, 0, 3)


def truncated_svd(dense: Tensor, nblocks: int) -> Tensor:
    """Find the relative error of the nearest Monarch matrix by decomposing every slice in full.

    Args:
        dense: (n, n), n a multiple of the square of nblocks.
        nblocks: Blocks per factor.

    Returns:
        A scalar.
    """
    parts = slices(dense, nblocks)
    u, s, vh = torch.linalg.svd(parts, full_matrices=False)
    kept = s.shape[-1] // nblocks
    found = (u[..., :kept] * s[..., None, :kept]) @ vh[..., :kept, :]
    lost, whole = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (parts - found, dense))
    return lost / whole


def build(size: Size) -> Pair:
    """Draw a matrix whose slices have decaying singular values, as trained weights have.

    Args:
        size: ``features`` n and ``nblocks``, whose square divides it.

    Returns:
        The pair.
    """
    generator = torch.Generator().manual_seed(0)
    n, nblocks = size["features"], size["nblocks"]
    scales = torch.arange(1, n + 1) ** -0.5
    dense = torch.randn(n, n, generator=generator) @ (scales[:, None] * torch.randn(n, n, generator=generator))

    def ours() -> Outputs:
        return {"relative error": torch.tensor(project_monarch(dense, nblocks).relative_error)}

    def baseline() -> Outputs:
        return {"relative error": truncated_svd(dense, nblocks)}

    def reference() -> Outputs:
        values = torch.linalg.svdvals(slices(dense.double(), nblocks))
        lost = values[..., values.shape[-1] // nblocks :]
        return {"relative error": lost.norm() / values.norm()}

    return Pair(ours, baseline, reference, _TOLERANCE)


register(
    Case(
        "project-monarch-4",
        "the nearest Monarch matrix and its error, nblocks 4",
        "full SVD of every slice",
        Figure.FORWARD,
        build,
        {"features": 4096, "nblocks": 4},
        {"features": 32, "nblocks": 4},
        bar=3.0,
    )
)
