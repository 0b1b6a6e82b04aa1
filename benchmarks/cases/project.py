"""Projecting a dense matrix to the nearest Monarch matrix, against full decompositions of its slices."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Outputs, Size, Work, compare, draw, register
from milkweed.structures import project_monarch

# What is compared is the relative error of the projection, which both ways must reach; their factors differ.
_TOLERANCE = 1e-5


def slices(dense: Tensor, nblocks: int) -> Tensor:
    """The parts of an (n, n) matrix that a Monarch matrix approximates by itself, each of its own low rank.

    Returns (nblocks, nblocks, n / nblocks, n / nblocks); n is a multiple of the square of nblocks.
    """
    block = dense.shape[0] // nblocks
    return dense.view(block, nblocks, nblocks, block).permute(1, 2, 0, 3)


def truncated_svd(dense: Tensor, nblocks: int) -> Tensor:
    """The relative error of the nearest Monarch matrix, by decomposing every slice in full."""
    parts = slices(dense, nblocks)
    u, s, vh = torch.linalg.svd(parts, full_matrices=False)
    kept = s.shape[-1] // nblocks
    found = (u[..., :kept] * s[..., None, :kept]) @ vh[..., :kept, :]
    lost, whole = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (parts - found, dense))
    return lost / whole


def build(size: Size) -> Work:
    """A matrix whose slices have decaying singular values, as trained weights have."""
    n, nblocks = size["features"], size["nblocks"]
    scales = torch.arange(1, n + 1) ** -0.5
    dense = draw(n, n) @ (scales[:, None] * draw(n, n))

    def ours() -> Outputs:
        return {"relative error": torch.tensor(project_monarch(dense, nblocks).relative_error)}

    def peer() -> Outputs:
        return {"relative error": truncated_svd(dense, nblocks)}

    def truth() -> Outputs:
        values = torch.linalg.svdvals(slices(dense.double(), nblocks))
        lost = values[..., values.shape[-1] // nblocks :]
        return {"relative error": lost.norm() / values.norm()}

    # The products of every slice with itself, of which one triangle suffices; decompositions are not counted.
    return compare(ours, peer, truth, _TOLERANCE, flops=n**3 // nblocks, bytes=dense.nbytes)


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
