"""What every model shares: it can be written down as plain values and read back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from milkweed import _registry
from milkweed._arguments import check_tensor, checked, got, plain
from milkweed._suggest import unknown


class Model(nn.Module):
    """Base of networks that are built from plain values.

    A subclass calls ``super().__init__(option=value, ...)`` with all its constructor arguments; they become
    ``options`` and, with the class's name, ``config``. Subclasses register themselves under their class names; one
    whose name is taken needs another one by `milkweed.register` before it can be saved.

    Args:
        **options: The subclass's constructor arguments, JSON values only.

    Example:
        >>> model = mw.models.SequenceModel(1, 10, d_model=8, depth=1)
        >>> isinstance(model, mw.models.Model), model.options["d_model"]
        (True, 8)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {name: _as_json(value) for name, value in options.items()}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registry.register_if_free("model", cls)

    @property
    def config(self) -> dict[str, Any]:
        """The name and options from which `build_model` makes the same architecture."""
        return {"name": _registry.name_of("model", type(self)), "options": self.options}


def _as_json(value: Any) -> Any:
    """Numpy's numbers as Python's and mappings as dicts, so that options can be written down."""
    return {key: _as_json(each) for key, each in value.items()} if isinstance(value, Mapping) else plain(value)


@checked
def build_model(config: dict[str, Any]) -> Model:
    """Build a model from its config.

    Args:
        config: ``{"name": registered name, "options": constructor arguments}``.

    Returns:
        The model with fresh parameters.

    Raises:
        ValueError: The name or an option is unknown.
        TypeError: The name is no string, or the options are no mapping.

    Example:
        >>> model = mw.models.SequenceModel(1, 10, d_model=8, depth=1)
        >>> type(mw.models.build_model(model.config)).__name__
        'SequenceModel'
    """
    name, options = config.get("name"), config.get("options", {})
    if not isinstance(options, dict):
        raise TypeError(f"config must be {{'name': ..., 'options': {{...}}}}; got {got(config)}")
    kind: type[Model] = _registry.find("model", name, "config: model name")
    parameters = inspect.signature(kind).parameters
    for option in options:
        if option not in parameters and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            raise ValueError(unknown(f"option of {name}", option, parameters))
    return kind(**options)


def _check_class(cls: type, name: str) -> None:
    if not issubclass(cls, Model):
        raise TypeError(f"model {name!r} must be a subclass of milkweed.models.Model; got {cls!r}")


_registry.requires("model", _check_class)


def check_inputs(inputs: Tensor, d_input: int, name: str = "inputs") -> None:
    """Refuse inputs that are not floating-point (B, L, d_input)."""
    check_tensor(name, inputs)
    if inputs.ndim != 3 or inputs.shape[-1] != d_input or inputs.shape[1] == 0:
        raise ValueError(
            f"{name} must be (B, L, d_input) with L >= 1 and d_input={d_input}; got shape {tuple(inputs.shape)}"
        )
    if not inputs.is_floating_point():
        raise ValueError(f"{name} must be floating point; got {inputs.dtype}; use {name}.float()")


def check_tokens(tokens: Tensor, count: int, name: str = "tokens") -> None:
    """Refuse tokens that are not (B, L) integers from 0 to count - 1; ``name`` is what messages call them."""
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
