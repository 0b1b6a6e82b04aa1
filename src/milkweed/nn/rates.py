"""Signals of another sampling rate: which layers know how long a step is."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from milkweed.nn.block_diagonal_glu import BlockDiagonalGlu
from milkweed.nn.filters.base import check_rate
from milkweed.nn.mlp import Mlp

POINTWISE = (Mlp, BlockDiagonalGlu)


def rate_options(layer: nn.Module, rate: Any) -> dict[str, Any]:
    """What a layer is given beside its input for steps ``rate`` times as long; nothing at rate 1, which all know."""
    if type(rate) in {int, float} and rate == 1:
        return {}
    if isinstance(layer, POINTWISE):
        check_rate(rate)
        return {}
    # A compiler need not look at a signature: the call says the same.
    if not torch.compiler.is_compiling() and not takes_rate(layer):
        check_rate(rate)
        raise ValueError(
            f"rate must be 1 for a {type(layer).__name__}, which knows no time but steps; got {rate!r}; use a state "
            "space layer, S4 or S4D, for signals of another sampling rate"
        )
    return {"rate": rate}


def takes_rate(module: nn.Module) -> bool:
    """Whether a module's call has an argument ``rate``."""
    parameters = inspect.signature(module.forward).parameters
    return "rate" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
