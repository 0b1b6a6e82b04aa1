"""Several structured layers on one input, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed.nn.structured_linear.base import StructuredLinear, check_update
from milkweed.structures import LowRank, Monarch
from milkweed.structures.monarch_sum import matrix_rows


class ConcatLinear(nn.Module):
    """Linear layers on the same input, their outputs concatenated: a packed query, key and value as three matrices.

    One Monarch matrix for the packed weight would mix the outputs of the three and have other parameters.

    Args:
        parts: The layers, in the order of their outputs.

    Raises:
        ValueError: There is no part, or they read inputs of different sizes or dtypes.

    Example:
        >>> packed = mw.nn.ConcatLinear([mw.nn.MonarchLinear(64, 64, nblocks=4) for _ in range(3)])
        >>> packed(torch.randn(2, 64)).shape
        torch.Size([2, 192])
    """

    @checked
    def __init__(self, parts: Sequence[StructuredLinear]) -> None:
        super().__init__()
        if len({part.in_features for part in parts}) != 1:
            raise ValueError(
                f"parts must be layers of one input size; got sizes {[part.in_features for part in parts]}"
            )
        dtypes = {parameter.dtype for part in parts for parameter in part.parameters()}
        if len(dtypes) != 1:
            raise ValueError(f"parts must be layers of one dtype; got {', '.join(sorted(map(str, dtypes)))}")
        self.parts = nn.ModuleList(parts)
        self.in_features, self.out_features = parts[0].in_features, sum(part.out_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers to the last dimension.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features).
        """
        return torch.cat([part(x) for part in self.parts], dim=-1)

    @property
    def takes_updates(self) -> bool:
        """Whether every part can take a Monarch or low-rank matrix, see `StructuredLinear.add_`."""
        return all(part.takes_updates for part in self._layers)

    @property
    def _layers(self) -> list[StructuredLinear]:
        """The parts by their class."""
        return [part for part in self.parts if isinstance(part, StructuredLinear)]

    @torch.no_grad()
    def add_(self, update: Monarch | LowRank) -> Self:
        """Add a matrix to the weight, in place and exactly, see `StructuredLinear.add_`: each part gets its rows.

        Args:
            update: (out_features, in_features).

        Returns:
            The layer.

        Raises:
            ValueError: The sum has another structure, or the update another shape; no part is changed.
            TypeError: The update is neither a Monarch nor a low-rank matrix.
        """
        check_update(self, update)
        first = 0
        for part in self._layers:
            last = first + part.out_features
            part.add_(matrix_rows(update, first, last))
            first = last
        return self

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Multiply the factors out.

        Returns:
            The dense layer with the same outputs, on the same device, in the same dtype and training mode.
        """
        dense = [part.to_linear() for part in self._layers]
        weight = torch.cat([each.weight for each in dense])
        linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=any(each.bias is not None for each in dense),
            device=weight.device,
            dtype=weight.dtype,
        )
        linear.weight.copy_(weight).requires_grad_(any(each.weight.requires_grad for each in dense))
        if linear.bias is not None:
            biases: list[Tensor] = [
                each.weight.new_zeros(each.out_features) if each.bias is None else each.bias for each in dense
            ]
            linear.bias.copy_(torch.cat(biases)).requires_grad_(any(bias.requires_grad for bias in biases))
        return linear.train(self.training)
