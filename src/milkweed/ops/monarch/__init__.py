"""Multiply by a Monarch matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import check_numbers
from milkweed.ops import backends
from milkweed.ops._common import autocast_together, check_no_empty_block, needs_plain_formula, warn_once
from milkweed.ops._epilogue import check_epilogue, fit_bias
from milkweed.ops._triton import triton_backend
from milkweed.ops.monarch import eager, export, reference


def _triton(x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    from milkweed.ops.monarch import triton

    return triton.monarch_mm(x, right, left, bias, activation)


backends.register(
    "monarch_mm",
    triton_backend(_triton),
    backends.Backend("eager", eager.monarch_mm, needs_plain_formula),
    backends.Backend("reference", reference.monarch_mm),
    backends.export_backend(export.monarch_mm),
)


def monarch_mm(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply the last dimension by the Monarch matrix with factors ``right`` and ``left``.

    ``W[s * l_tot + l, k * p_tot + i]`` is the sum over all q with ``k * q_tot + q ≡ l (mod l_tot)`` of
    ``left[l, s, (k * q_tot + q) // l_tot] * right[k, q, i]``. Under autocast all tensors are cast to its dtype.

    Args:
        x: (..., n) with n = k * p.
        right: (k, q, p), applied first.
        left: (l, s, r) with l * r = k * q.
        bias: (m,), added to the product.
        activation: Applied to the sum: ``"gelu"``, ``"gelu_tanh"`` (its approximation), ``"relu"`` or ``"silu"``.
        backend: ``"triton"``, ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., m) with m = l * s, in ``x``'s dtype.

    Raises:
        ValueError: The shapes do not fit, or the activation or the backend is unknown.
        TypeError: The dtypes differ, or are neither floating point nor complex.

    Source:
        Monarch (arXiv 2204.00595), section 3.1 and the rectangular extension of its appendix, in the layout that the
        authors' checkpoints use. Where q < l some slices are structurally zero; the paper does not treat that case.

    Example:
        >>> right, left = torch.ones(2, 2, 2), torch.tensor([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2])
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> mw.ops.monarch_mm(x, right, left)
        tensor([3., 7., 3., 7.])
        >>> torch.equal(mw.ops.monarch_mm(x, right, left), mw.Monarch(right, left).to_dense() @ x)
        True
    """
    check_numbers(x=x, right=right, left=left)
    if right.ndim != 3 or left.ndim != 3:
        raise ValueError(
            f"right must be (k, q, p) and left (l, s, r); got shapes {tuple(right.shape)} and {tuple(left.shape)}"
        )
    check_no_empty_block(right=right, left=left)
    k, q, p = right.shape
    l, s, r = left.shape  # noqa: E741 - the paper's letter
    if l * r != k * q:
        raise ValueError(
            f"left (l, s, r) = {tuple(left.shape)} must take what right (k, q, p) = {tuple(right.shape)} gives: "
            f"l * r = {l * r}, k * q = {k * q}"
        )
    if x.ndim == 0 or x.shape[-1] != k * p:
        raise ValueError(
            f"x must end in k * p = {k} * {p} = {k * p} features for right {tuple(right.shape)}; "
            f"got shape {tuple(x.shape)}"
        )
    if q < l and not torch.compiler.is_compiling():
        warn_once(
            f"right {tuple(right.shape)} has q={q} < l={l}: some slices of the matrix are zero whatever the factors; "
            f"use q >= {l}"
        )
    check_epilogue(bias, activation, s * l)
    x, right, left = autocast_together(x, right, left)
    if not x.dtype == right.dtype == left.dtype:
        raise TypeError(
            f"x, right and left must have one dtype; got {x.dtype}, {right.dtype}, {left.dtype}; cast with .to()"
        )
    bias = fit_bias(bias, x)
    flat = x.reshape(math.prod(x.shape[:-1]), k * p)
    out = backends.dispatch("monarch_mm", backend, flat, right, left, bias, activation)
    return out.reshape(*x.shape[:-1], s * l)
