"""What every model shares: it can be written down as plain values and read back."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._arguments import check_tensor, checked, got
from milkweed._suggest import unknown

_registered: dict[str, type[Model]] = {}


class Model(nn.Module):
    """Base of networks that are built from plain values.

    A subclass calls ``super().__init__(option=value, ...)`` with all its constructor arguments; they become
    ``options`` and, with the class name, ``config``. Subclasses register themselves by name.

    Args:
        **options: The subclass's constructor arguments, JSON values only.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registered[cls.__name__] = cls

    @property
    def config(self) -> dict[str, Any]:
        """The class name and options from which `build_model` makes the same architecture."""
        return {"name": type(self).__name__, "options": self.options}


@checked
def build_model(config: dict[str, Any]) -> Model:
    """Build a model from its config.

    Args:
        config: ``{"name": class name, "options": constructor arguments}``.

    Returns:
        The model with fresh parameters.

    Raises:
        ValueError: The name or an option is unknown.
        TypeError: The name is no string, or the options are no mapping.
    """
    name, options = config.get("name"), config.get("options", {})
    if not isinstance(name, str | None) or not isinstance(options, dict):
        raise TypeError(f"config must be {{'name': ..., 'options': {{...}}}}; got {got(config)}")
    if name not in _registered:
        raise ValueError(unknown("config: model name", name, _registered))
    accepted = list(inspect.signature(_registered[name]).parameters)
    for option in options:
        if option not in accepted:
            raise ValueError(unknown(f"option of {name}", option, accepted))
    return _registered[name](**options)


def check_inputs(inputs: Tensor, d_input: int, name: str = "inputs") -> None:
    """Refuse inputs that are not (B, L, d_input).

    Args:
        inputs: The batch.
        d_input: Features expected.
        name: What the caller calls the inputs.

    Raises:
        ValueError: The shape does not fit.
    """
    if inputs.ndim != 3 or inputs.shape[-1] != d_input or inputs.shape[1] == 0:
        raise ValueError(
            f"{name} must be (B, L, d_input) with L >= 1 and d_input={d_input}; got shape {tuple(inputs.shape)}"
        )
    if not inputs.is_floating_point():
        raise ValueError(f"{name} must be floating point; got {inputs.dtype}; use {name}.float()")


def check_tokens(tokens: Tensor, count: int, name: str = "tokens") -> None:
    """Refuse tokens that an embedding does not have.

    Args:
        tokens: The batch.
        count: How many different tokens there are.
        name: What they are called, for messages.

    Raises:
        ValueError: They are not (B, L) integers from 0 to count - 1.
    """
    check_tensor(name, tokens)
    if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.dtype not in {torch.int64, torch.int32}:
        raise ValueError(
            f"{name} must be (B, L) integers, int64 or int32, with L >= 1; got {tokens.dtype} of shape "
            f"{tuple(tokens.shape)}"
        )
    if torch.compiler.is_compiling() or tokens.device.type != "cpu" or tokens.numel() == 0:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= count:
        raise ValueError(f"{name} must be in 0 .. {count - 1}; got {low} .. {high}")
