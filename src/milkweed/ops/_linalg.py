"""Linear algebra written out for exported programs: no runtime but torch solves systems or takes exponentials."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.ops._common import widest_dtype
from milkweed.ops.backends import arranged_for_export

# The exponential of a matrix is that of its 2^-20th part, a polynomial, squared as often: right for norms up to 1e5,
# in float64, as a power of 1 + d keeps the digits of d.
_SQUARINGS = 20
_DEGREE = 8


def solve(a: Tensor, b: Tensor) -> Tensor:
    """``torch.linalg.solve`` for a few unknowns and a matrix (..., n, n) that needs no pivots."""
    if not arranged_for_export():
        found: Tensor = torch.linalg.solve(a, b)
        return found
    size = a.shape[-1]
    rows = list(torch.cat([a, b], -1).unbind(-2))
    for i in range(size):
        rows[i] = rows[i] / rows[i][..., i : i + 1]
        rows = [row if j == i else row - row[..., i : i + 1] * rows[i] for j, row in enumerate(rows)]
    return torch.stack(rows, -2)[..., size:]


def solve_lower(triangle: Tensor, b: Tensor) -> Tensor:
    """``torch.linalg.solve_triangular`` for a lower triangle (..., n, n) and right-hand sides (..., n, m)."""
    if not arranged_for_export():
        return torch.linalg.solve_triangular(triangle, b, upper=False)
    # The inverse, a constant of the program: (1 + N)⁻¹ = (1 - N) (1 + N²) (1 + N⁴) ⋯ is finite, as Nⁿ = 0.
    size = triangle.shape[-1]
    wide = triangle.to(widest_dtype(triangle))
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    power = -(wide / diagonal[..., None]).tril(-1)
    inverse = torch.eye(size, dtype=wide.dtype, device=wide.device) + power
    reached = 2
    while reached < size:
        power = power @ power
        inverse = inverse + inverse @ power
        reached *= 2
    return (inverse / diagonal[..., None, :]).to(b.dtype) @ b


def matrix_exp(a: Tensor) -> Tensor:
    """``torch.linalg.matrix_exp``."""
    if not arranged_for_export():
        found: Tensor = torch.linalg.matrix_exp(a)
        return found
    wide = a.to(widest_dtype(a)) / 2**_SQUARINGS
    eye = torch.eye(a.shape[-1], dtype=wide.dtype, device=wide.device)
    d = wide / _DEGREE
    for divisor in range(_DEGREE - 1, 0, -1):
        d = (wide + wide @ d) / divisor
    for _ in range(_SQUARINGS):
        d = 2 * d + d @ d
    return (eye + d).to(a.dtype)
