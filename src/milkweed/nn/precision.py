"""Parameters that half precision would ruin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class KeepsFloat32(nn.Module):
    """Mix-in for modules whose numbers stay in float32 when a model is cast to bfloat16 or float16.

    A timescale or a frequency is multiplied by the position: its rounding error grows along the sequence, and steps of
    an optimiser that are smaller than its last digit are lost. So a module of such parameters takes no part in
    ``model.bfloat16()`` and ``model.half()``; it moves between devices, and to float64, as any other. It is a module of
    its own, so that FSDP, which wants one dtype per group, can shard it apart.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(lambda tensor: _no_narrower(fn(tensor), tensor), recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # With ``assign=True`` the tensors of a file in half precision would become the parameters.
        for name, tensor in state_dict.items():
            if name.startswith(prefix) and isinstance(tensor, Tensor) and tensor.dtype in _NARROW:
                state_dict[name] = tensor.float()
        super()._load_from_state_dict(state_dict, prefix, *args)


def at_least_float32(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of parameters that stay in float32: torch's default for None, float32 for a narrower one."""
    return torch.promote_types(torch.get_default_dtype() if dtype is None else dtype, torch.float32)


_NARROW = {torch.bfloat16, torch.float16}


def _no_narrower(cast: Tensor, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or cast.dtype in {torch.float32, torch.float64}:
        return cast
    return tensor.to(cast.device, at_least_float32(cast.dtype))
