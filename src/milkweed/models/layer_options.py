"""Options of a layer as a network's own option."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from milkweed._suggest import unknown


def layer_options(
    argument: str, options: Mapping[str, Any] | None, layer: type[nn.Module], decided: Collection[str]
) -> dict[str, Any]:
    """Check the options that a network passes on to a layer.

    Args:
        argument: The network's argument, for messages.
        options: What was given; None for nothing.
        layer: Its arguments may be given by name.
        decided: Those that the network decides itself.

    Returns:
        A copy of the options.

    Raises:
        TypeError: They are no mapping.
        ValueError: The layer has no such argument, or it is not to be chosen.
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"{argument} must be a mapping of {layer.__name__}'s arguments, or None; got {options!r}")
    accepted = [name for name in inspect.signature(layer).parameters if name not in {*decided, "device", "dtype"}]
    for name in options or {}:
        if name not in accepted:
            raise ValueError(unknown(argument, name, accepted))
    return dict(options or {})
