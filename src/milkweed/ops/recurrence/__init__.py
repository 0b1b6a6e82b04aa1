"""First-order linear recurrences along the last dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import check_numbers
from milkweed.ops import backends
from milkweed.ops._common import compute_dtype, needs_plain_formula
from milkweed.ops.recurrence import eager, export, reference

backends.register(
    "linear_recurrence",
    backends.Backend("eager", eager.linear_recurrence, needs_plain_formula),
    backends.Backend("reference", reference.linear_recurrence),
    backends.export_backend(export.linear_recurrence),
)


def linear_recurrence(a: Tensor, x: Tensor, initial: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Run ``h_t = a_t h_{t-1} + x_t`` for every row, in float32 at least.

    Chunks of time run side by side and are joined by their last states; nothing is ever divided by a product of ``a``,
    which may be zero, negative or above 1.

    Args:
        a: (..., L) or (..., 1), the factors; broadcasts to ``x``'s shape.
        x: (..., L), the inputs; complex ones run with the reference backend.
        initial: (...), h_{-1}; broadcasts to ``x``'s leading dimensions. Zero by default.
        backend: ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., L) in ``x``'s dtype: all states h_0 .. h_{L-1}.

    Raises:
        ValueError: A shape does not fit, or the backend is unknown.
        TypeError: A tensor holds integers, or is complex while ``x`` is real.

    Source:
        The scan by blocks of Blelloch, Prefix sums and their applications (1990), section 1.4, in two levels; this
        folder's README.

    Example:
        >>> mw.ops.linear_recurrence(torch.full((1, 4), 0.5), torch.tensor([[8.0, 0.0, 0.0, 1.0]]))
        tensor([[8., 4., 2., 2.]])
    """
    given = {"a": a, "x": x} if initial is None else {"a": a, "x": x, "initial": initial}
    check_numbers(**given)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., L) with L >= 1; got shape {tuple(x.shape)}")
    for name, tensor, shape in (("a", a, x.shape), ("initial", initial, x.shape[:-1])):
        if tensor is None:
            continue
        if tensor.is_complex() and not x.is_complex():
            raise TypeError(f"x must be complex as {name} is; got {x.dtype}; use x.to({tensor.dtype})")
        if not _broadcasts(tensor.shape, shape):
            raise ValueError(
                f"{name} must broadcast to {tuple(shape)} for x of shape {tuple(x.shape)}; got {tuple(tensor.shape)}"
            )
    dtype = compute_dtype(a, x, initial)
    if x.is_complex():
        dtype = torch.promote_types(dtype, torch.complex64)
    rows, length = math.prod(x.shape[:-1]), x.shape[-1]
    if initial is None:
        initial = x.new_zeros(())
    states = backends.dispatch(
        "linear_recurrence",
        backend,
        a.to(dtype).expand(x.shape).reshape(rows, length),
        x.to(dtype).reshape(rows, length),
        initial.to(dtype).expand(x.shape[:-1]).reshape(rows),
    )
    return states.reshape(x.shape).to(x.dtype)


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    if len(shape) > len(target):
        return False
    return all(size == 1 or size == other for size, other in zip(shape[::-1], target[::-1], strict=False))
