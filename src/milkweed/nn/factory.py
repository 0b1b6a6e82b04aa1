"""Layers by name, so that a network can be written down as plain values in a recipe or a saved file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.nn.filters.base import Filter
from milkweed.nn.filters.causal_monarch import CausalMonarchMixer
from milkweed.nn.filters.long_conv import LongConv
from milkweed.nn.gated_mixer import GatedMixer
from milkweed.nn.monarch_mixer import MonarchMixer
from milkweed.nn.s4_layers import S4, S4D
from milkweed.nn.sequence_layer import SequenceLayer, divide_options
from milkweed.nn.structured_linear import (
    BlockDiagonalLinear,
    ButterflyLinear,
    LowRankLinear,
    MonarchLinear,
    PixelflyLinear,
    StructuredLinear,
)


def _layer_around(kind: Callable[..., Filter]) -> Callable[..., nn.Module]:
    """Make a `SequenceLayer` around a filter from the arguments of both."""

    def build(d_model: int, **options: Any) -> nn.Module:
        own, mixing = divide_options(options)
        return SequenceLayer(kind(d_model, **own), **mixing)

    own, mixing = (list(inspect.signature(each).parameters.values()) for each in (kind, SequenceLayer))
    taken = {parameter.name for parameter in own} | {"filter"}
    merged = [*own, *(parameter for parameter in mixing if parameter.name not in taken)]
    build.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    return build


SEQUENCE_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "causal_monarch": _layer_around(CausalMonarchMixer),
    "gated_mixer": GatedMixer,
    "long_conv": _layer_around(LongConv),
    "monarch_mixer": MonarchMixer,
    "s4": S4,
    "s4d": S4D,
}
LINEAR_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "block_diagonal": BlockDiagonalLinear,
    "butterfly": ButterflyLinear,
    "dense": nn.Linear,
    "low_rank": LowRankLinear,
    "monarch": MonarchLinear,
    "pixelfly": PixelflyLinear,
}


@checked
def build_sequence_layer(spec: Mapping[str, Any], d_model: int) -> nn.Module:
    """Build a layer on (B, L, d_model) from plain values.

    Args:
        spec: ``{"name": "s4d", **options}``, the options being the layer's own arguments. ``"long_conv"`` and
            ``"causal_monarch"`` stand for a [`milkweed.nn.SequenceLayer`][] around these filters, and take the
            arguments of both.
        d_model: Channels.

    Returns:
        The layer.
    """
    return _build("layer", SEQUENCE_LAYERS, spec, d_model)


@checked
def build_linear(spec: Mapping[str, Any], in_features: int, out_features: int) -> nn.Module:
    """Build a linear layer, dense or structured, from plain values.

    Args:
        spec: ``{"name": "dense"}``, ``{"name": "monarch", "nblocks": 4}``, ...
        in_features: Size of each input.
        out_features: Size of each output.

    Returns:
        The layer.
    """
    return _build("linear", LINEAR_LAYERS, spec, in_features, out_features)


def linear_spec(layer: nn.Linear | StructuredLinear) -> dict[str, Any]:
    """Write a linear layer down as `build_linear` reads it.

    Args:
        layer: The layer.

    Returns:
        ``{"name": ..., "bias": ..., **options}``, plain values.

    Raises:
        TypeError: It is of a class that has no name.
    """
    for name, kind in LINEAR_LAYERS.items():
        if type(layer) is kind:
            options = layer.options if isinstance(layer, StructuredLinear) else {}
            return {"name": name, "bias": layer.bias is not None, **options}
    raise TypeError(f"layer must be one of {', '.join(LINEAR_LAYERS)}; got {type(layer).__name__}")


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
    """
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ValueError(f"{kind} must be a mapping with a name (a spec), e.g. {{'name': 's4d'}}; got {spec!r}")
    return dict(spec)


def _build(kind: str, known: Mapping[str, Callable[..., nn.Module]], spec: Mapping[str, Any], *sizes: int) -> nn.Module:
    options = check_spec(kind, spec)
    name = options.pop("name")
    if name not in known:
        raise ValueError(unknown(f"{kind}.name", name, known))
    # Where a layer lives is decided by its network, not by a recipe.
    accepted = {
        option: parameter.default
        for option, parameter in list(inspect.signature(known[name]).parameters.items())[len(sizes) :]
        if option not in {"device", "dtype"}
    }
    for option, value in options.items():
        if option not in accepted:
            raise ValueError(unknown(f"{kind} {name}: option", option, accepted))
        _check_type(f"{kind}.{option}", value, accepted[option])
    missing = [option for option, default in accepted.items() if default is inspect.Parameter.empty]
    for option in missing:
        if option not in options:
            raise ValueError(f"{kind} {name} needs {option}, e.g. {{'name': {name!r}, {option!r}: 1024}}")
    return known[name](*sizes, **options)


def _check_type(option: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the option's default; a default of None says nothing about the type."""
    expected = type(default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if expected in {bool, int, float, str} and not (type(value) is expected or (expected is float and whole)):
        raise ValueError(f"{option} must be {expected.__name__}; got {value!r}")
