"""How an unconstrained parameter becomes a rate of decay, -Re A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Function and inverse. All but "none" keep Re A <= 0 whatever training does.
_RATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "exp": (torch.exp, torch.log),
    "none": (lambda x: x, lambda x: x),
    "relu": (F.relu, lambda x: x),
    "sigmoid": (torch.sigmoid, torch.logit),
    "softplus": (F.softplus, lambda x: x + torch.log(-torch.expm1(-x))),
}
DECAYS = tuple(_RATES)


def decay_rate(parameter: Tensor, decay: str) -> Tensor:
    """Map a parameter to a rate -Re A, by one of ``DECAYS``."""
    return _RATES[decay][0](parameter)


def inverse_decay_rate(rate: Tensor, decay: str) -> Tensor:
    """Find the parameter that gives a rate -Re A; refuse a rate that none gives."""
    parameter = _RATES[decay][1](rate)
    if not parameter.is_meta and not parameter.isfinite().all():
        raise ValueError(f"decay={decay!r} cannot start at -Re A in {float(rate.min()):g} .. {float(rate.max()):g}")
    return parameter
