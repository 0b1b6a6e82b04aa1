"""Kernels and states of dense discrete state spaces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from milkweed._arguments import check_real, whole
from milkweed.ops import backends
from milkweed.ops._common import compute_dtype, needs_plain_formula
from milkweed.ops._triton import refuses, triton_backend
from milkweed.ops.dense_ssm_kernel import eager, export, reference

# A program holds whole matrices; of N = 128 they fill a GPU's shared memory and spill from its registers.
_MOST_TRITON_MODES = 64


def _triton_backend(run: Callable[..., Tensor], place: int) -> backends.Backend:
    """The backend with a limit to the system's size; ``place`` is that of ``a`` among the arguments."""

    def refusal(*args: Any) -> str | None:
        modes = args[place].shape[-1]
        if modes > _MOST_TRITON_MODES:
            return f"its programs hold whole matrices, of N <= {_MOST_TRITON_MODES}, got N={modes}; use backend='eager'"
        return refuses(*args)

    return dataclasses.replace(triton_backend(run), refusal=refusal)


def _triton_kernel(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    from milkweed.ops.dense_ssm_kernel import triton

    return triton.dense_ssm_kernel(a, b, c, length)


def _triton_state(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    from milkweed.ops.dense_ssm_kernel import triton

    return triton.dense_ssm_state(u, a, b)


backends.register(
    "dense_ssm_kernel",
    _triton_backend(_triton_kernel, 0),
    backends.Backend("eager", eager.dense_ssm_kernel, needs_plain_formula),
    backends.Backend("reference", reference.dense_ssm_kernel),
    backends.export_backend(export.dense_ssm_kernel),
)
backends.register(
    "dense_ssm_state",
    _triton_backend(_triton_state, 1),
    backends.Backend("eager", eager.dense_ssm_state, needs_plain_formula),
    backends.Backend("reference", reference.dense_ssm_state),
    backends.export_backend(export.dense_ssm_state),
)
backends.register(
    "dense_ssm_advance",
    backends.Backend("eager", eager.dense_ssm_advance, needs_plain_formula),
    backends.Backend("reference", reference.dense_ssm_advance),
    backends.export_backend(export.dense_ssm_advance),
)


def dense_ssm_kernel(a: Tensor, b: Tensor, c: Tensor, length: int, *, backend: str | None = None) -> Tensor:
    """Evaluate ``K_l = c a^l b`` for l = 0 .. L - 1.

    The impulse response of x_t = a x_{t-1} + b u_t, y_t = c x_t. About log L squarings of ``a``, √L states in between
    and one matrix product, all in float32 at least, whether or not autocast is on. ``a`` is meant to be stable: its
    powers are formed, and those of an unstable matrix overflow.

    Args:
        a: (..., N, N), real: the discrete system.
        b: (..., N). Leading dimensions of all three broadcast; those that only ``c`` or only ``b`` has (directions, a
            batch of states) share the powers of ``a``.
        c: (..., N).
        length: L >= 1.
        backend: ``"triton"``, ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., L) in ``c``'s dtype.

    Raises:
        ValueError: A shape or the length does not fit, or the backend is unknown.
        TypeError: A tensor is not real floating point.

    Source:
        The SSM convolution kernel of S4 (arXiv 2111.00396), equation 5, computed as a blocked Krylov product instead of
        by its generating function; this folder's README derives it.

    Example:
        >>> a = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
        >>> mw.ops.dense_ssm_kernel(a, b=torch.tensor([0.0, 1.0]), c=torch.tensor([1.0, 0.0]), length=5)
        tensor([0.0000, 1.0000, 0.0000, 0.5000, 0.0000])
    """
    _check_system(a, b=b, c=c)
    length = whole("length", length)
    dtype, out_dtype = compute_dtype(a, b, c), c.dtype
    if b.ndim > max(a.ndim - 1, c.ndim):
        # c a^l b = b (aᵀ)^l c: the one with more leading dimensions takes the place of c.
        a, b, c = a.mT, c, b
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-1], c.shape[:-1])
    # What a and b have, or c has in the same places; dimensions before these are a batch.
    depth = max(a.ndim - 2, b.ndim - 1)
    shared, modes = lead[len(lead) - depth :], a.shape[-1]
    rows, batch = math.prod(shared), math.prod(lead[: len(lead) - depth])
    kernel = backends.dispatch(
        "dense_ssm_kernel",
        backend,
        a.to(dtype).expand(*shared, modes, modes).reshape(rows, modes, modes),
        b.to(dtype).expand(*shared, modes).reshape(rows, modes),
        c.to(dtype).expand(*lead, modes).reshape(batch, rows, modes),
        length,
    )
    return kernel.reshape(*lead, length).to(out_dtype)


def dense_ssm_state(u: Tensor, a: Tensor, b: Tensor, *, backend: str | None = None) -> Tensor:
    """Evaluate ``x = sum_t a^(L-1-t) b u_t``, the state of x_t = a x_{t-1} + b u_t after the last step, from zero.

    The transpose of [`dense_ssm_kernel`][milkweed.ops.dense_ssm_kernel], at the same cost. The output that a start x_0
    adds is ``dense_ssm_kernel(a, a x_0, c, L)``, the state that it adds is
    [`dense_ssm_advance`][milkweed.ops.dense_ssm_advance].

    Args:
        u: (..., H, L), real.
        a: (H, N, N), real: the discrete system.
        b: (H, N).
        backend: ``"triton"``, ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., H, N) in float32 at least: a state is carried over many calls.

    Raises:
        ValueError: A shape does not fit, or the backend is unknown.
        TypeError: A tensor is not real floating point.

    Source:
        The recurrence of S4 (arXiv 2111.00396), equation 3, unrolled.

    Example:
        >>> a, b = torch.tensor([[[0.5]]]), torch.tensor([[1.0]])
        >>> mw.ops.dense_ssm_state(torch.tensor([[4.0, 2.0, 1.0]]), a, b)  # 1 + 2 / 2 + 4 / 4
        tensor([[3.]])
    """
    check_real(u=u)
    _check_system(a, b=b)
    channels, modes = a.shape[0], a.shape[-1]
    if a.ndim != 3 or b.ndim != 2 or b.shape[0] != channels or u.ndim < 2 or u.shape[-2] != channels:
        raise ValueError(
            "u, a and b must be (..., H, L), (H, N, N) and (H, N); "
            f"got shapes {tuple(u.shape)}, {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if u.shape[-1] == 0:
        raise ValueError(f"u must have length 1 at least; got shape {tuple(u.shape)}")
    dtype = compute_dtype(u, a, b)
    flat = u.to(dtype).reshape(math.prod(u.shape[:-2]), *u.shape[-2:])
    state = backends.dispatch("dense_ssm_state", backend, flat, a.to(dtype), b.to(dtype))
    return state.reshape(*u.shape[:-1], modes)


def dense_ssm_advance(x: Tensor, a: Tensor, steps: int | Tensor, *, backend: str | None = None) -> Tensor:
    """Evaluate ``a^steps x``: where a state goes without input.

    Args:
        x: (..., H, N), real: the state.
        a: (H, N, N), real: the discrete system.
        steps: At least 0; one number, or integers (...), one for each state in the batch.
        backend: ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., H, N) in float32 at least.

    Raises:
        ValueError: A shape or ``steps`` does not fit, or the backend is unknown.
        TypeError: A tensor is not real floating point, or ``steps`` not integer.

    Source:
        The recurrence of S4 (arXiv 2111.00396), equation 3, by binary powers.

    Example:
        >>> a = torch.diag(torch.tensor([0.5, -1.0]))[None]
        >>> mw.ops.dense_ssm_advance(torch.ones(1, 2), a, 3)
        tensor([[ 0.1250, -1.0000]])
    """
    _check_system(a, x=x)
    if a.ndim != 3 or x.ndim < 2 or x.shape[-2] != a.shape[0]:
        raise ValueError(f"x and a must be (..., H, N) and (H, N, N); got shapes {tuple(x.shape)} and {tuple(a.shape)}")
    lead = x.shape[:-2]
    if isinstance(steps, Tensor):
        if steps.is_floating_point() or steps.is_complex() or steps.dtype == torch.bool:
            raise TypeError(f"steps must be integers; got {steps.dtype}")
        if steps.shape != lead:
            raise ValueError(f"steps must be one for each state, {tuple(lead)}; got shape {tuple(steps.shape)}")
        if not torch.compiler.is_compiling() and steps.device.type != "meta" and (steps < 0).any():
            raise ValueError(f"steps must be at least 0; got {int(steps.min())}")
        counts = steps.to(x.device, torch.int64).reshape(-1)
    else:
        count = whole("steps", steps, 0)
        counts = torch.full((math.prod(lead),), count, dtype=torch.int64, device=x.device)
    dtype = compute_dtype(x, a)
    flat = x.to(dtype).reshape(math.prod(lead), *x.shape[-2:])
    return backends.dispatch("dense_ssm_advance", backend, flat, a.to(dtype), counts).reshape(x.shape)


def _check_system(a: Tensor, **vectors: Tensor) -> None:
    check_real(a=a, **vectors)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise ValueError(f"a must be square, (..., N, N) with N >= 1; got shape {tuple(a.shape)}")
    for name, vector in vectors.items():
        if vector.ndim < 1 or vector.shape[-1] != a.shape[-1]:
            raise ValueError(f"{name} must be (..., N) with N = {a.shape[-1]} as in a; got shape {tuple(vector.shape)}")
    try:
        torch.broadcast_shapes(a.shape[:-2], *(vector.shape[:-1] for vector in vectors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(vector.shape)}" for name, vector in {"a": a, **vectors}.items())
        raise ValueError(f"leading dimensions must broadcast; got {shapes}") from None
