"""Options of the wrong type, which Python would take in silence: ``gate="no"`` is true."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import nn

from milkweed._suggest import unknown

F = TypeVar("F", bound=Callable[..., None])

_VARIADIC = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
_EXPECTED = {bool: "True or False", float: "a number", int: "an integer", str: "a string"}


def is_kind(value: object, kind: type) -> bool:
    """Tell whether a value may stand where a bool, float, int or str is expected.

    Args:
        value: Anything.
        kind: One of these types. An integer is a float too, but a bool is nothing else.

    Returns:
        Whether it may.
    """
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_kind(kind: type, /, *, optional: bool = False, **options: object) -> None:
    """Refuse options of another type.

    Args:
        kind: ``bool``, ``float``, ``int`` or ``str``.
        optional: None will do as well.
        **options: Values by argument name.

    Raises:
        TypeError: One is of another type.
    """
    for name, value in options.items():
        if not (is_kind(value, kind) or (optional and value is None)):
            or_none = ", or None" if optional else ""
            raise TypeError(f"{name} must be {_EXPECTED[kind]}{or_none}; got {value!r}")


def check_names(**options: object) -> None:
    """Refuse options that are no list of names; a single string would be read letter by letter.

    Args:
        **options: Values by argument name.

    Raises:
        TypeError: One is no list or tuple of strings.
    """
    for name, value in options.items():
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            fix = f"; use [{value!r}]" if isinstance(value, str) else ""
            raise TypeError(f"{name} must be a list of names; got {value!r}{fix}")


def check_rate(**options: Any) -> None:
    """Refuse what is no probability.

    Args:
        **options: Values by argument name.

    Raises:
        ValueError: One is not between 0 and 1.
        TypeError: One is no number.
    """
    check_kind(float, **options)
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0 <= p <= 1; got {value}")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what parameters cannot be stored in.

    Args:
        dtype: Of the parameters; None for torch's default.

    Raises:
        TypeError: It is not real floating point.
    """
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, or None; got {dtype!r}; use e.g. torch.float32")
    if not dtype.is_floating_point:
        fix = f"; use {dtype.to_real()}, complex numbers are stored as real pairs" if dtype.is_complex else ""
        raise TypeError(f"dtype must be real floating point; got {dtype}{fix}")


def takes_options_of(*kinds: type) -> Callable[[F], F]:
    """Decorate an ``__init__`` whose ``**options`` stand for those of other classes, where they are documented."""
    # The signature shows them all, and an unknown one is refused by name; of two options of one name the first counts.

    def decorate(init: F) -> F:
        own = [p for p in inspect.signature(init).parameters.values() if p.kind not in _VARIADIC]
        taken = {parameter.name for parameter in own}
        for kind in kinds:
            for parameter in inspect.signature(kind).parameters.values():
                if parameter.name not in taken | {"filter"} and parameter.kind not in _VARIADIC:
                    own.append(parameter)
                    taken.add(parameter.name)
        own.sort(key=lambda parameter: parameter.kind)

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **options: Any) -> None:
            for name in options:
                if name not in taken:
                    raise TypeError(unknown(f"option of {type(self).__name__}", name, taken - {"self"}))
            init(self, *args, **options)

        checked.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        return cast(F, checked)

    return decorate


def layer_options(
    argument: str, options: Mapping[str, Any] | None, layer: type[nn.Module], decided: Collection[str]
) -> dict[str, Any]:
    """Check and copy the options that a network passes on to a layer."""
    # ``argument`` is the network's own, for messages; ``layer`` takes them by name, except those that the network has
    # ``decided``.
    if not isinstance(options, Mapping | None):
        raise TypeError(f"{argument} must be a mapping of {layer.__name__}'s arguments, or None; got {options!r}")
    accepted = [name for name in inspect.signature(layer).parameters if name not in {*decided, "device", "dtype"}]
    for name in options or {}:
        if name not in accepted:
            raise ValueError(unknown(argument, name, accepted))
    return dict(options or {})
