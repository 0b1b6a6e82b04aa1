"""What a dense layer may become: one immutable configuration per structured layer, of plain values."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from milkweed._arguments import plain
from milkweed._registry import find, requires
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight
from milkweed.nn.structured_linear.hidden_units import GroupedUnits


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """How to replace one linear layer.

    The fields of a subclass are the options of its layer's ``from_linear`` and, except those in ``fitting``, which
    only steer the projection, of the layer itself. `milkweed.register` makes a subclass known to the command line.

    Attributes:
        name: That of the layer, see [`milkweed.nn.build_linear`][].
        fitting: Fields that are no options of the layer.

    Example:
        >>> isinstance(mw.MonarchConfig(nblocks=4), mw.convert.LayerConfig)
        True
    """

    name: ClassVar[str]
    fitting: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given, least = getattr(self, field.name), 0 if field.name in self.fitting else 1
            value = plain(given)
            if value is not given:
                object.__setattr__(self, field.name, value)
            if not is_whole(field) or (value is None and field.default is None):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{field.name} must be an integer; got {value!r}")
            if value < least:
                raise ValueError(f"{field.name} must be at least {least}; got {value}")

    def spec(self) -> dict[str, Any]:
        """The layer as [`milkweed.nn.build_linear`][] reads it: ``{"name": ..., **options}`` of plain values."""
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in self.fitting and v is not None}
        return {"name": self.name, **options}

    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        """Find the structured layer nearest to a dense one, by the layer's ``from_linear``.

        Args:
            linear: The dense layer.
            input_covariance: (in_features, in_features), E[x xᵀ] of its inputs.

        Returns:
            The layer, with the dense one's bias, device, dtype and training mode.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self._layer().from_linear(linear, **options, input_covariance=input_covariance)

    def empty(self, linear: nn.Linear) -> StructuredLinear:
        """Make the layer in the sizes of a dense one, without numbers, on the meta device."""
        dense_weight(linear)  # refuses another layer
        options = self.spec() | {"bias": linear.bias is not None}
        del options["name"]
        with torch.device("meta"):
            layer = self._layer()(linear.in_features, linear.out_features, **options)
        return layer.to(linear.weight.dtype)

    def hidden_units(self, weight: Tensor, covariance: Tensor, energy: float, *, rows: bool) -> GroupedUnits | None:
        """See the layer from the hidden units that it makes or reads, so that a conversion can put them in order.

        Args:
            weight: (m, n), in float64.
            covariance: (n, n), of its inputs, in float64.
            energy: Of its outputs; losses are shares of it.
            rows: Whether the units are its outputs, else they are its inputs.

        Returns:
            The view; None, unless a subclass gives one, where the order of units makes no known difference.
        """
        return None

    def _layer(self) -> Any:
        return find("linear", self.name, f"{type(self).__name__}.name")

    def __str__(self) -> str:
        options = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(self).items() if v is not None and v != 0)
        return f"{self.name} ({options})"


def is_whole(field: dataclasses.Field[Any]) -> bool:
    """Tell whether a configuration's field is a whole number, ``int`` or ``int | None``, by its annotation."""
    return field.type in ("int", "int | None", "None | int", "Optional[int]", int, int | None)


def _check_config(cls: type, name: str) -> None:
    if not issubclass(cls, LayerConfig):
        raise TypeError(f"config {name!r} must be a subclass of milkweed.convert.LayerConfig; got {cls!r}")
    if "__dataclass_fields__" not in vars(cls):
        raise TypeError(
            f"config {name!r}: {cls.__name__} must be a dataclass; put @dataclasses.dataclass(frozen=True) between "
            "@milkweed.register and the class"
        )
    if getattr(cls, "name", None) != name:
        raise TypeError(
            f"config {name!r}: {cls.__name__}.name must be {name!r} too, the name of its layer; got "
            f"{getattr(cls, 'name', None)!r}; write name: ClassVar[str] = {name!r}"
        )


requires("config", _check_config)
