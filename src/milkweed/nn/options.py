"""Options of the wrong type, which Python would take in silence: ``gate="no"`` is true."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from torch import nn

from milkweed._arguments import plain
from milkweed._suggest import unknown

F = TypeVar("F", bound=Callable[..., None])

_VARIADIC = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


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
    return {name: plain(value) for name, value in (options or {}).items()}
