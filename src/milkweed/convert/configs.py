"""What a dense layer may become: one frozen configuration per structure, writable as JSON."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from milkweed._arguments import check_kind
from milkweed._suggest import unknown
from milkweed.nn.factory import build_linear
from milkweed.nn.structured_linear import (
    BlockDiagonalLinear,
    LowRankLinear,
    MonarchLinear,
    PixelflyLinear,
    StructuredLinear,
)


@dataclasses.dataclass(frozen=True)
class LayerConfig(ABC):
    """How to replace one linear layer.

    The fields of a subclass are the options of its layer, save those in ``fitting``, which only steer the projection.
    """

    name: ClassVar[str]
    fitting: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in self.fitting else 1
            if value is None and field.default is None:
                continue
            check_kind(int, **{field.name: value})
            if value < least:
                raise ValueError(f"{field.name} must be at least {least}; got {value}")

    def spec(self) -> dict[str, Any]:
        """Write the layer down as `milkweed.nn.factory.build_linear` reads it.

        Returns:
            ``{"name": ..., **options}``, plain values.
        """
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in self.fitting and v is not None}
        return {"name": self.name, **options}

    @abstractmethod
    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        """Find the structured layer nearest to a dense one.

        Args:
            linear: The dense layer.
            input_covariance: (in_features, in_features), E[x xᵀ] of its inputs.

        Returns:
            The layer, with the dense one's bias, device, dtype and training mode.
        """

    def empty(self, linear: nn.Linear) -> StructuredLinear:
        """Make the layer without numbers, on the meta device.

        Args:
            linear: The dense layer, whose sizes count.

        Returns:
            The layer.

        Raises:
            TypeError: ``linear`` is no layer.
        """
        if not isinstance(linear, nn.Module):
            raise TypeError(f"linear must be a torch.nn.Linear; got {type(linear).__name__}")
        spec = {**self.spec(), "bias": linear.bias is not None}
        with torch.device("meta"):
            layer = build_linear(spec, linear.in_features, linear.out_features)
        return cast(StructuredLinear, layer.to(linear.weight.dtype))

    def __str__(self) -> str:
        options = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(self).items() if v is not None and v != 0)
        return f"{self.name} ({options})"


@dataclasses.dataclass(frozen=True)
class MonarchConfig(LayerConfig):
    """Replace by [`milkweed.nn.MonarchLinear`][].

    Args:
        nblocks: Blocks per factor.
        rank: Rank of each slice; as much as fits by default.
        refine: Rounds of least squares after the projection; used where there is calibration.
    """

    nblocks: int = 4
    rank: int | None = None
    refine: int = 0
    name: ClassVar[str] = "monarch"
    fitting: ClassVar[tuple[str, ...]] = ("refine",)

    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        """Project to the nearest Monarch matrix; see the base class.

        Args:
            linear: The dense layer.
            input_covariance: Of its inputs.

        Returns:
            The layer.
        """
        refine = self.refine if input_covariance is not None else 0
        return MonarchLinear.from_linear(
            linear, self.nblocks, self.rank, input_covariance=input_covariance, refine=refine
        )


@dataclasses.dataclass(frozen=True)
class LowRankConfig(LayerConfig):
    """Replace by [`milkweed.nn.LowRankLinear`][].

    Args:
        rank: Features between.
    """

    rank: int
    name: ClassVar[str] = "low_rank"

    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        """Truncate the singular values; see the base class.

        Args:
            linear: The dense layer.
            input_covariance: Of its inputs.

        Returns:
            The layer.
        """
        return LowRankLinear.from_linear(linear, self.rank, input_covariance=input_covariance)


@dataclasses.dataclass(frozen=True)
class BlockDiagonalConfig(LayerConfig):
    """Replace by [`milkweed.nn.BlockDiagonalLinear`][].

    Args:
        nblocks: Blocks.
    """

    nblocks: int = 4
    name: ClassVar[str] = "block_diagonal"

    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        """Keep the diagonal blocks; see the base class.

        Args:
            linear: The dense layer.
            input_covariance: Of its inputs.

        Returns:
            The layer.
        """
        return BlockDiagonalLinear.from_linear(linear, self.nblocks, input_covariance=input_covariance)


@dataclasses.dataclass(frozen=True)
class PixelflyConfig(LayerConfig):
    """Replace by [`milkweed.nn.PixelflyLinear`][].

    Args:
        nblocks: Block rows and columns, a power of two.
        rank: Of the low-rank part.
        neighbours: Blocks in each block row.
    """

    nblocks: int = 4
    rank: int = 8
    neighbours: int | None = None
    name: ClassVar[str] = "pixelfly"

    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        """Fit blocks and a low-rank matrix by turns; see the base class.

        Args:
            linear: The dense layer.
            input_covariance: Of its inputs.

        Returns:
            The layer.
        """
        return PixelflyLinear.from_linear(
            linear, self.nblocks, self.rank, self.neighbours, input_covariance=input_covariance
        )


CONFIGS: dict[str, type[LayerConfig]] = {
    config.name: config for config in (MonarchConfig, LowRankConfig, BlockDiagonalConfig, PixelflyConfig)
}


def config_from_spec(spec: Mapping[str, Any]) -> LayerConfig:
    """Read a configuration from plain values.

    Args:
        spec: ``{"name": "monarch", "nblocks": 4}``.

    Returns:
        The configuration.

    Raises:
        ValueError: The name or an option is unknown.
    """
    options = dict(spec)
    name = options.pop("name", None)
    if name not in CONFIGS:
        raise ValueError(unknown("structure", name, CONFIGS))
    known = [field.name for field in dataclasses.fields(CONFIGS[name])]
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of {name}", option, known))
    return CONFIGS[name](**options)
