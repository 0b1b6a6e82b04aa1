"""Layers by name, so that a network can be written down as plain values in a recipe or a saved file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from milkweed import _registry
from milkweed._arguments import checked, plain
from milkweed._suggest import unknown
from milkweed.nn.filters.base import Filter
from milkweed.nn.sequence_layer import SequenceLayer, divide_options
from milkweed.nn.structured_linear import StructuredLinear
from milkweed.nn.structured_linear.base import constructor_options

_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


@checked
def build_sequence_layer(spec: Mapping[str, Any], d_model: int) -> nn.Module:
    """Build a layer on (B, L, d_model) from plain values.

    Args:
        spec: ``{"name": "s4d", **options}``, the options being the layer's own arguments. The names of filters, such
            as ``"long_conv"``, stand for a [`milkweed.nn.SequenceLayer`][] around them, and take the arguments of both.
        d_model: Channels.

    Returns:
        The layer.

    Example:
        >>> layer = mw.nn.build_sequence_layer({"name": "s4d", "d_state": 16}, d_model=8)
        >>> layer(torch.randn(2, 50, 8)).shape
        torch.Size([2, 50, 8])
    """
    return _build("layer", spec, d_model)


@checked
def build_linear(spec: Mapping[str, Any], in_features: int, out_features: int) -> nn.Module:
    """Build a linear layer, dense or structured, from plain values.

    Args:
        spec: ``{"name": "dense"}``, ``{"name": "monarch", "nblocks": 4}``, ...
        in_features: Size of each input.
        out_features: Size of each output.

    Returns:
        The layer.

    Example:
        >>> mw.nn.build_linear({"name": "monarch", "nblocks": 2}, 64, 32)
        MonarchLinear(in_features=64, out_features=32, nblocks=2, bias=True)
    """
    return _build("linear", spec, in_features, out_features)


def linear_spec(layer: nn.Linear | StructuredLinear) -> dict[str, Any]:
    """Write a linear layer down as `build_linear` reads it: ``{"name": ..., "bias": ..., **options}``, plain values."""
    spec = {"name": _registry.name_of("linear", type(layer)), "bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):
        return spec
    spec |= layer.options
    # A subclass may have options that its base class does not list.
    for option, default in constructor_options(type(layer)).items():
        if option not in spec and not hasattr(layer, option):
            kind = type(layer).__name__
            raise TypeError(f"{kind} cannot be written down: it must keep its option {option!r} as an attribute")
        if option not in spec and getattr(layer, option) != default:
            spec[option] = getattr(layer, option)
    return spec


@checked
def check_spec(kind: str, spec: Any) -> dict[str, Any]:
    """Check that a layer is written as a mapping with a name.

    Args:
        kind: The argument's name, for messages.
        spec: What was given.

    Returns:
        A copy of it.

    Raises:
        ValueError: It is no mapping, or has no name.

    Example:
        >>> mw.nn.check_spec("linear", {"name": "monarch", "nblocks": 2})
        {'name': 'monarch', 'nblocks': 2}
    """
    if not isinstance(spec, Mapping) or "name" not in spec:
        example = {"name": "monarch", "nblocks": 4} if kind.endswith("linear") else {"name": "s4d"}
        raise ValueError(f"{kind} must be a mapping with a name (a spec), e.g. {example}; got {spec!r}")
    return {option: plain(value) for option, value in spec.items()}


def _build(kind: str, spec: Mapping[str, Any], *sizes: int) -> nn.Module:
    make, options = _checked(kind, kind, spec, len(sizes))
    return make(*sizes, **options)


def check_linear(argument: str, spec: Any) -> dict[str, Any]:
    """Check the plain values of a linear layer but for its sizes; ``argument`` is what messages call them."""
    _checked("linear", argument, spec, 2)
    return check_spec(argument, spec)


def _checked(kind: str, argument: str, spec: Any, sizes: int) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """What makes the layer of a spec from so many sizes, and its options."""
    options = check_spec(argument, spec)
    name = options.pop("name")
    make = maker(_registry.find(kind, name, f"{argument}.name"))
    parameters = list(inspect.signature(make).parameters.values())[sizes:]
    # Where a layer lives is decided by its network, not by a recipe.
    decided = {"device", "dtype"}
    accepted = {p.name: p.default for p in parameters if p.kind not in _VARIADIC and p.name not in decided}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for option, value in options.items():
        if option in decided or (option not in accepted and not takes_any):
            raise ValueError(unknown(f"{argument} {name}: option", option, accepted))
        _check_type(f"{argument}.{option}", value, accepted.get(option))
    missing = [option for option, default in accepted.items() if default is inspect.Parameter.empty]
    for option in missing:
        if option not in options:
            raise ValueError(f"{argument} {name} needs {option}, e.g. {{'name': {name!r}, {option!r}: 1024}}")
    return make, options


def maker(cls: type[nn.Module]) -> Callable[..., nn.Module]:
    """Find what makes a registered layer: its class, or for a filter what puts a `SequenceLayer` around it."""
    if not issubclass(cls, Filter):
        return cls

    def build(d_model: int, **options: Any) -> nn.Module:
        own, mixing = divide_options(options)
        return SequenceLayer(cls(d_model, **own), **mixing)

    own, mixing = (list(inspect.signature(each).parameters.values()) for each in (cls, SequenceLayer))
    taken = {parameter.name for parameter in own} | {"filter"}
    merged = [*own, *(parameter for parameter in mixing if parameter.name not in taken)]
    build.__wrapped__ = cls  # type: ignore[attr-defined]
    build.__signature__ = inspect.Signature(sorted(merged, key=lambda each: each.kind))  # type: ignore[attr-defined]
    return build


def _check_layer(cls: type, name: str) -> None:
    if not issubclass(cls, nn.Module):
        raise TypeError(f"layer {name!r} must be a torch.nn.Module or a milkweed.nn.filters.Filter; got {cls!r}")
    _check_sizes("layer", name, cls, ("d_model",))
    if issubclass(cls, Filter):
        shared = divide_options(dict.fromkeys(inspect.signature(cls).parameters))[0]
        for option in inspect.signature(cls).parameters:
            if option not in shared:
                raise TypeError(
                    f"layer {name!r}: {option!r} is an option of the SequenceLayer around the filter; rename that of "
                    f"{cls.__name__}, or register a layer of your own instead of a filter"
                )


def _check_linear(cls: type, name: str) -> None:
    if not issubclass(cls, StructuredLinear) and cls is not nn.Linear:
        raise TypeError(f"linear {name!r} must be a subclass of milkweed.nn.StructuredLinear; got {cls!r}")
    _check_sizes("linear", name, cls, ("in_features", "out_features"))
    if "bias" not in inspect.signature(cls).parameters:
        raise TypeError(f"linear {name!r}: {cls.__name__} must take bias, which a dense layer may have or not")


def _check_sizes(kind: str, name: str, cls: type, sizes: tuple[str, ...]) -> None:
    """Refuse a constructor that cannot be called with the sizes, which a network decides, by position."""
    found = tuple(inspect.signature(cls).parameters.values())[: len(sizes)]
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    if len(found) < len(sizes) or any(each.kind not in positional for each in found):
        raise TypeError(
            f"{kind} {name!r}: {cls.__name__} must take {', '.join(sizes)} first; it takes {inspect.signature(cls)}"
        )


def _check_type(option: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the option's default; a default of None says nothing about the type."""
    expected = type(default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if expected in {bool, int, float, str} and not (type(value) is expected or (expected is float and whole)):
        raise ValueError(f"{option} must be {expected.__name__}; got {value!r}")


_registry.requires("layer", _check_layer)
_registry.requires("linear", _check_linear)
_registry.register("linear", "dense", nn.Linear)
