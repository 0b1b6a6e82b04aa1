"""Kernels and final states of diagonal state spaces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import check_real, check_tensor, whole
from milkweed.ops import backends
from milkweed.ops._common import compute_dtype, needs_plain_formula
from milkweed.ops._triton import triton_backend
from milkweed.ops.ssm_kernel import eager, export, reference


def _triton_kernel(c: Tensor, dt_a: Tensor, length: int) -> Tensor:
    from milkweed.ops.ssm_kernel import triton

    return triton.diagonal_ssm_kernel(c, dt_a, length)


def _triton_state(u: Tensor, dt_a: Tensor) -> Tensor:
    from milkweed.ops.ssm_kernel import triton

    return triton.diagonal_ssm_state(u, dt_a)


backends.register(
    "diagonal_ssm_kernel",
    triton_backend(_triton_kernel),
    backends.Backend("eager", eager.diagonal_ssm_kernel, needs_plain_formula),
    backends.Backend("reference", reference.diagonal_ssm_kernel),
    backends.export_backend(export.diagonal_ssm_kernel),
)
backends.register(
    "diagonal_ssm_state",
    triton_backend(_triton_state),
    backends.Backend("eager", eager.diagonal_ssm_state, needs_plain_formula),
    backends.Backend("reference", reference.diagonal_ssm_state),
    backends.export_backend(export.diagonal_ssm_state),
)


def diagonal_ssm_kernel(c: Tensor, dt_a: Tensor, length: int, *, backend: str | None = None) -> Tensor:
    """Evaluate ``K_l = 2 Re sum_n c_n exp(dt_a_n l)`` for l = 0 .. L - 1.

    N modes stand for N conjugate pairs, hence the factor 2. Real arithmetic throughout, in float32 at least; the work
    is one real matrix product per row and about √L exponentials per mode, not L.

    Args:
        c: (..., N, 2) real pairs, or (..., N) complex.
        dt_a: (..., N, 2) or (..., N) complex, the exponents per step; leading dimensions broadcast with ``c``'s.
        length: L >= 1.
        backend: ``"triton"``, ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., L), real, in ``c``'s precision.

    Raises:
        ValueError: A shape or the length does not fit, or the backend is unknown.

    Source:
        S4D (arXiv 2206.11893), section 3.3, equation 9; the split of the exponent is derived in this folder's README.

    Example:
        >>> decay = torch.tensor([[-math.log(2), 0.0]])  # one real mode, halved in every step
        >>> mw.ops.diagonal_ssm_kernel(torch.tensor([[0.5, 0.0]]), decay, length=4)
        tensor([1.0000, 0.5000, 0.2500, 0.1250])
    """
    c, dt_a = _pairs("c", c), _pairs("dt_a", dt_a)
    if c.shape[-2] != dt_a.shape[-2]:
        raise ValueError(f"c and dt_a must have one number of modes N; got {c.shape[-2]} and {dt_a.shape[-2]}")
    length = whole("length", length)
    dtype = compute_dtype(c, dt_a)
    lead = torch.broadcast_shapes(c.shape[:-2], dt_a.shape[:-2])
    wide_c = c.to(dtype).expand(*lead, *c.shape[-2:])
    if lead[len(lead) - dt_a.ndim + 2 :] != dt_a.shape[:-2]:
        dt_a = dt_a.expand(*lead, *dt_a.shape[-2:])
    # Leading dimensions that dt_a lacks share its exponentials.
    rows, modes = math.prod(dt_a.shape[:-2]), dt_a.shape[-2]
    batch = math.prod(lead[: len(lead) - dt_a.ndim + 2])
    kernel = backends.dispatch(
        "diagonal_ssm_kernel",
        backend,
        wide_c.reshape(batch, rows, modes, 2),
        dt_a.to(dtype).reshape(rows, modes, 2),
        length,
    )
    return kernel.reshape(*lead, length).to(c.dtype)


def diagonal_ssm_state(u: Tensor, dt_a: Tensor, *, backend: str | None = None) -> Tensor:
    """Evaluate ``x_n = sum_l u_l exp(dt_a_n (L - 1 - l))``, the state of every mode after the last step.

    The transpose of [`diagonal_ssm_kernel`][milkweed.ops.diagonal_ssm_kernel], at the same cost.

    Args:
        u: (..., H, L), real.
        dt_a: (H, N, 2) real pairs, or (H, N) complex.
        backend: ``"triton"``, ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (..., H, N, 2) real pairs in float32 at least: a state is carried over many calls.

    Raises:
        ValueError: A shape does not fit, or the backend is unknown.
        TypeError: ``u`` is not real floating point.

    Source:
        The recurrence of S4D (arXiv 2206.11893), section 2, unrolled.

    Example:
        >>> decay = torch.tensor([[[-math.log(2), 0.0]]])  # one channel, one mode
        >>> mw.ops.diagonal_ssm_state(torch.tensor([[4.0, 2.0, 1.0]]), decay)
        tensor([[[3., 0.]]])
    """
    dt_a = _pairs("dt_a", dt_a)
    check_real(u=u)
    if u.ndim < 2 or dt_a.ndim != 3 or u.shape[-2] != dt_a.shape[0]:
        raise ValueError(
            f"u must be (..., H, L) and dt_a (H, N, 2); got shapes {tuple(u.shape)} and {tuple(dt_a.shape)}"
        )
    if u.shape[-1] == 0:
        raise ValueError(f"u must have length 1 at least; got shape {tuple(u.shape)}")
    dtype = compute_dtype(u, dt_a)
    flat = u.to(dtype).reshape(math.prod(u.shape[:-2]), *u.shape[-2:])
    state = backends.dispatch("diagonal_ssm_state", backend, flat, dt_a.to(dtype))
    return state.reshape(*u.shape[:-1], dt_a.shape[1], 2)


def _pairs(name: str, tensor: Tensor) -> Tensor:
    check_tensor(name, tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.shape[-1] != 2 or tensor.shape[-2] == 0:
        raise ValueError(
            f"{name} must be real pairs (..., N, 2) or complex (..., N) with N >= 1; "
            f"got shape {tuple(tensor.shape)}, {tensor.dtype}"
        )
    return tensor
