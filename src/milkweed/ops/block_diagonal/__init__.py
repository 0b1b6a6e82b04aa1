"""Multiply by a block-diagonal matrix."""

from __future__ import annotations

import math

from torch import Tensor

from milkweed._arguments import check_numbers
from milkweed.ops import backends
from milkweed.ops._common import autocast_together, check_no_empty_block, needs_plain_formula
from milkweed.ops._epilogue import check_epilogue, fit_bias
from milkweed.ops._triton import triton_backend
from milkweed.ops.block_diagonal import eager, export, reference


def _triton(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    from milkweed.ops.block_diagonal import triton

    return triton.block_diagonal_mm(x, weight, bias, activation)


backends.register(
    "block_diagonal_mm",
    triton_backend(_triton),
    backends.Backend("eager", eager.block_diagonal_mm, needs_plain_formula),
    backends.Backend("reference", reference.block_diagonal_mm),
    backends.export_backend(export.block_diagonal_mm),
)


def block_diagonal_mm(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply the last dimension by a block-diagonal matrix of k blocks of q × p.

    Under autocast all tensors are cast to the autocast dtype, as in ``torch.nn.functional.linear``.

    Args:
        x: (..., k * p).
        weight: (k, q, p).
        bias: (k * q,), added to the product.
        activation: Applied to the sum: ``"gelu"``, ``"gelu_tanh"`` (its approximation), ``"relu"`` or ``"silu"``.
        backend: ``"triton"``, ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., k * q), with ``x``'s dtype.

    Raises:
        ValueError: The shapes do not fit, or the activation or the backend is unknown.
        TypeError: The dtypes differ, or are neither floating point nor complex.

    Source:
        Monarch (arXiv 2204.00595), section 3: the two factors of a Monarch matrix are of this kind.

    Example:
        >>> weight = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])  # two blocks of 1 × 2
        >>> mw.ops.block_diagonal_mm(torch.tensor([1.0, 2.0, 3.0, 4.0]), weight)
        tensor([ 3., -1.])
    """
    check_numbers(x=x, weight=weight)
    if weight.ndim != 3:
        raise ValueError(f"weight must be (k, q, p); got shape {tuple(weight.shape)}")
    check_no_empty_block(weight=weight)
    k, q, p = weight.shape
    if x.ndim == 0 or x.shape[-1] != k * p:
        raise ValueError(
            f"x must end in k * p = {k} * {p} = {k * p} features for weight {tuple(weight.shape)}; "
            f"got shape {tuple(x.shape)}"
        )
    check_epilogue(bias, activation, k * q)
    x, weight = autocast_together(x, weight)
    if x.dtype != weight.dtype:
        raise TypeError(f"x and weight must have one dtype; got {x.dtype} and {weight.dtype}; cast one with .to()")
    bias = fit_bias(bias, x)
    flat = x.reshape(math.prod(x.shape[:-1]), k * p)
    out = backends.dispatch("block_diagonal_mm", backend, flat, weight, bias, activation)
    return out.reshape(*x.shape[:-1], k * q)
