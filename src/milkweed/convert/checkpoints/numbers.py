"""What a tensor of a foreign checkpoint must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def stored_numbers(key: str, value: Any, *, whole: bool = False) -> Tensor:
    """Take a tensor of finite real numbers, or ``whole`` ones; anything else is a ValueError that names the key."""
    if not isinstance(value, Tensor | np.ndarray):
        raise ValueError(f"{key!r} must be a tensor; got {type(value).__name__}")
    tensor = torch.as_tensor(value).detach()
    if tensor.is_meta:
        raise ValueError(f"{key!r} holds no numbers: it is on the meta device; read the file onto the CPU")
    if not whole and not tensor.is_floating_point():
        raise ValueError(f"{key!r} must be real floating point; got {tensor.dtype}")
    if tensor.is_floating_point() and tensor.itemsize == 1:
        raise ValueError(f"{key!r} is {tensor.dtype}, in which torch computes nothing; cast it to bfloat16 or wider")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{key!r} holds NaN or infinity; the file is damaged, or of a training that diverged")
    return tensor
