"""Right-padded batches: what ``lengths`` must be, and what it says."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_steps(lengths: Tensor, length: int) -> Tensor:
    """Mark the steps that are no padding.

    Args:
        lengths: (B,) integers of any width.
        length: L.

    Returns:
        (B, L) booleans.
    """
    # Wide, as an int8 holds no step beyond 127.
    return torch.arange(length, device=lengths.device) < lengths.to(torch.int64)[:, None]


def without_padding(u: Tensor, lengths: Tensor | None) -> Tensor:
    """Set padding to zero, whatever it holds, NaN included; no gradient reaches it.

    Args:
        u: (..., L, D).
        lengths: (...) integers, valid steps of each sequence; None for all.

    Returns:
        (..., L, D).

    Raises:
        ValueError: The lengths do not describe a right-padded batch.
    """
    if lengths is None:
        return u
    check_lengths(lengths, u)
    valid = valid_steps(lengths.reshape(-1).to(u.device, torch.int64), u.shape[-2]).view(u.shape[:-1])
    # Filled, not multiplied: padding may hold NaN.
    return u.masked_fill(~valid[..., None], 0)


def check_lengths(lengths: Tensor, u: Tensor) -> None:
    """Refuse lengths that do not describe a right-padded batch.

    Args:
        lengths: (...) integers.
        u: (..., L, D).

    Raises:
        ValueError: The shape, the dtype or a value does not fit.
    """
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths must be an integer tensor; got {type(lengths).__name__}; use torch.tensor(lengths)")
    if lengths.shape != u.shape[:-2] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths must be integers of shape {tuple(u.shape[:-2])}, one per sequence; "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if torch.compiler.is_compiling() or lengths.device.type == "meta" or lengths.numel() == 0:
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > u.shape[-2]:
        raise ValueError(f"lengths must be in 1 .. L={u.shape[-2]}; got {low} .. {high}")
