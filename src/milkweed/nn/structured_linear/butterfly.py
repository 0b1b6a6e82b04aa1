"""Linear layer with a butterfly matrix or another chain of small blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn
from typing_extensions import override

from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight, orthogonal_blocks
from milkweed.structures import Chain, project_chain
from milkweed.structures.project import padded

_MOST_DIGITS = 64


@register("linear", "butterfly")
class ButterflyLinear(StructuredLinear):
    """Linear layer with a chain of block-diagonal factors; a butterfly for digits of 2.

    The chain is square, of the product of its digits; inputs are padded and outputs cut off. It starts with orthogonal
    blocks and nn.Linear's output variance.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        digits: Block sizes, the most significant digit first, their product at least both sizes; by default as many 2s
            as are needed. Fewer, larger digits make fewer, larger products: (32, 32) is a Monarch matrix of 1024.
        bias: Whether to add a bias.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: A size is below 1, or the digits do not reach the larger one.

    Source:
        Dao et al., Learning fast algorithms using butterfly factorizations (arXiv 1903.05895); order-p Monarch matrices
        of Monarch Mixer (arXiv 2310.12109).

    Example:
        >>> layer = mw.nn.ButterflyLinear(64, 64, bias=False)  # six factors of 2 × 2 blocks
        >>> sum(p.numel() for p in layer.parameters())
        768
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        digits: Sequence[int] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.digits = chain_digits(in_features, out_features, digits)
        shapes = Chain.identity(self.digits, device="meta").factors
        self.factors = nn.ParameterList(torch.empty(f.shape, device=device, dtype=dtype) for f in shapes)
        self.reset_parameters()

    @override
    def reset_parameters(self) -> None:
        # Independent entries would make products of many factors heavy-tailed; rotations keep lengths at every step.
        # Padded inputs are zero, which the gain makes up for.
        gain = math.sqrt(math.prod(self.digits) / (3 * self.in_features))
        for factor in self.factors:
            orthogonal_blocks(factor, gain ** (1 / len(self.factors)))
        self._reset_bias()

    @override
    def matrix(self) -> Chain:
        return Chain(tuple(self.factors), (self.out_features, self.in_features))

    @classmethod
    @checked(but=("linear",))
    def from_linear(cls, linear: nn.Linear, digits: Sequence[int] | None = None) -> Self:
        """Project a dense layer, exactly if it is a chain.

        Args:
            linear: The dense layer.
            digits: As for the layer.

        Returns:
            The layer with a near chain and everything else as the dense layer.
        """
        weight = dense_weight(linear)
        digits = chain_digits(weight.shape[1], weight.shape[0], digits)
        size = math.prod(digits)
        found = project_chain(padded(weight, size, size), digits).matrix
        factors = {f"factors.{index}": factor for index, factor in enumerate(found.factors)}
        return cls._from(linear, factors, digits=digits)

    @property
    @override
    def options(self) -> dict[str, Any]:
        return {"digits": list(self.digits)}


def chain_digits(in_features: int, out_features: int, digits: Sequence[int] | None) -> tuple[int, ...]:
    """Choose (as many 2s as needed) or check the digits of a chain that is cropped to a layer's size."""
    most = max(in_features, out_features)
    if digits is None:
        return (2,) * max(1, (most - 1).bit_length())
    if digits is not None and len(digits) > _MOST_DIGITS:
        raise ValueError(f"digits must be at most {_MOST_DIGITS}, the bits of a size; got {len(digits)}")
    if not digits or min(digits) < 1 or math.prod(digits) < most:
        raise ValueError(
            f"digits must be positive and multiply to at least {most}, the larger of in_features and out_features; "
            f"got {tuple(digits)}"
        )
    return tuple(digits)
