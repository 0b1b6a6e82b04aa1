"""What a tensor of somebody else's checkpoint must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def stored_numbers(key: str, value: Any, *, whole: bool = False) -> Tensor:
    """Take a tensor, if it holds what a model can be made of.

    Args:
        key: Its name there, for messages.
        value: What is stored.
        whole: Whether it may hold whole numbers.

    Returns:
        The tensor.

    Raises:
        ValueError: It is no tensor of finite real numbers.
    """
    if not isinstance(value, Tensor | np.ndarray):
        raise ValueError(f"{key!r} must be a tensor; got {type(value).__name__}")
    tensor = torch.as_tensor(value).detach()
    if tensor.is_meta:
        raise ValueError(f"{key!r} holds no numbers: it is on the meta device; read the file onto the CPU")
    if not whole and not tensor.is_floating_point():
        raise ValueError(f"{key!r} must be real floating point; got {tensor.dtype}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{key!r} holds NaN or infinity; the file is damaged, or of a training that diverged")
    return tensor
