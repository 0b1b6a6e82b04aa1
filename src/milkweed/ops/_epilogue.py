"""What a matrix product can do with its result before it is written: add a bias, apply an activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import check_tensor
from milkweed._suggest import unknown
from milkweed.ops._common import autocast_dtype

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def check_epilogue(bias: Tensor | None, activation: str | None, features: int) -> None:
    """Refuse a bias that does not fit, and an unknown activation."""
    if bias is not None:
        check_tensor("bias", bias)
        if bias.shape != (features,):
            raise ValueError(f"bias must be ({features},), one number per output; got shape {tuple(bias.shape)}")
    if activation is not None and not (isinstance(activation, str) and activation in ACTIVATIONS):
        raise ValueError(unknown("activation", activation, ACTIVATIONS))


def fit_bias(bias: Tensor | None, x: Tensor) -> Tensor | None:
    """Bring the bias to the input's dtype under autocast; without it another dtype is refused."""
    if bias is None or bias.dtype == x.dtype:
        return bias
    if autocast_dtype(x) is None:
        raise TypeError(f"bias must have x's dtype {x.dtype}; got {bias.dtype}; cast it with .to()")
    return bias.to(x.dtype)


def finish(y: Tensor, bias: Tensor | None, activation: str | None, *, in_place: bool = False) -> Tensor:
    """Add the bias, in place where nobody else holds y, then apply the activation, in differentiable functions."""
    if bias is not None:
        y = y.add_(bias) if in_place else y + bias
    return y if activation is None else ACTIVATIONS[activation](y)
