"""Right-padded batches: what ``lengths`` must be, and what it says."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_steps(lengths: Tensor, length: int) -> Tensor:
    """Mark the steps that are no padding: lengths (B,) -> (B, L) booleans."""
    # Wide, as an int8 holds no step beyond 127.
    return torch.arange(length, device=lengths.device) < lengths.to(torch.int64)[:, None]


def without_padding(u: Tensor, lengths: Tensor | None) -> Tensor:
    """Set padding of u (..., L, D) to zero, whatever it holds, NaN included; no gradient reaches it."""
    if lengths is None:
        return u
    check_lengths(lengths, u)
    valid = valid_steps(lengths.reshape(-1).to(u.device, torch.int64), u.shape[-2]).view(u.shape[:-1])
    # Filled, not multiplied: padding may hold NaN.
    return u.masked_fill(~valid[..., None], 0)


def tokens_without_padding(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """Set padding of tokens (..., L) to 0, whatever they are, e.g. -100."""
    return tokens if lengths is None or tokens.ndim < 2 else without_padding(tokens[..., None], lengths)[..., 0]


def mean_of_steps(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Average over the sequence, (B, L, D) -> (B, D), in float32 at least; the result has x's dtype."""
    total = without_padding(x, lengths).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    count = x.shape[1] if lengths is None else lengths.to(x.device, torch.int64)[:, None]
    return (total / count).to(x.dtype)


def check_lengths(lengths: Tensor, u: Tensor) -> None:
    """Refuse lengths (...) that do not describe a right-padded batch u (..., L, D)."""
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
