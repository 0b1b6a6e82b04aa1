"""Drop-in replacements for ``torch.nn.Linear`` whose matrix is a product of small dense blocks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed import ops


class StructuredLinear(nn.Module, ABC):
    """What the structured layers share: sizes, bias, padding of the input to whole blocks, cropping of the output.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        nblocks: Blocks per factor; sizes that it does not divide are padded.
        bias: Whether to add a bias.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: A size is below 1, or there are more blocks than features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features), ("nblocks", nblocks)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {name}={value}")
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if nblocks > value:
                raise ValueError(f"nblocks={nblocks} needs {name} >= {nblocks}; got {name}={value}")
        self.in_features, self.out_features, self.nblocks = in_features, out_features, nblocks
        self.in_block, self.out_block = -(-in_features // nblocks), -(-out_features // nblocks)
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None

    @abstractmethod
    def _factors(self) -> tuple[Tensor, ...]:
        """The parameters that make the matrix."""

    @abstractmethod
    def _product(self, x: Tensor, *factors: Tensor) -> Tensor:
        """X times the transposed matrix of these factors, both padded to whole blocks."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the last dimension.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features); under autocast in the autocast dtype.

        Raises:
            ValueError: The last dimension is not ``in_features``.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must be (..., in_features={self.in_features}); got shape {tuple(x.shape)}")
        y = self._padded_product(x, *self._factors())
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Multiply the factors out, in float32 at least.

        Returns:
            The dense layer with the same outputs, on the same device, in the same dtype and training mode.
        """
        factors = self._factors()
        wide = torch.promote_types(factors[0].dtype, torch.float32)
        like = {"device": factors[0].device, "dtype": factors[0].dtype}
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, **like)
        with torch.autocast(factors[0].device.type, enabled=False):
            columns = torch.eye(self.in_features, device=factors[0].device, dtype=wide)
            linear.weight.copy_(self._padded_product(columns, *(factor.to(wide) for factor in factors)).T)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def _padded_product(self, x: Tensor, *factors: Tensor) -> Tensor:
        missing = self.nblocks * self.in_block - self.in_features
        y = self._product(F.pad(x, (0, missing)) if missing else x, *factors)
        return y[..., : self.out_features]

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Describe the layer in one line.

        Returns:
            The options that shape it.
        """
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nblocks={self.nblocks}, "
            f"bias={self.bias is not None}"
        )


class MonarchLinear(StructuredLinear):
    """Linear layer with a Monarch matrix: two block-diagonal factors with a permutation after each.

    Every (out_features / nblocks) × (in_features / nblocks) slice of the matrix has rank ``rank``. Parameters:
    nblocks · q · (in_block + out_block), where q = nblocks · rank, or min(in_block, out_block) by default.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        nblocks: Blocks per factor; sizes that it does not divide are padded.
        bias: Whether to add a bias.
        rank: Rank of each slice, at most min(in_block, out_block).
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: Slices would be structurally zero (fewer than ``nblocks`` features per block), or the rank is out
            of range.

    Source:
        Monarch (arXiv 2204.00595), section 3. The initialisation gives nn.Linear's output variance, 1/3 of the
        input's; the authors' per-block rule gives 1/9.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int = 4,
        bias: bool = True,
        rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, nblocks, bias, device, dtype)
        narrow = min(self.in_block, self.out_block)
        if rank is None and narrow < nblocks:
            name = "in_features" if self.in_block <= self.out_block else "out_features"
            raise ValueError(
                f"nblocks={nblocks} needs {name} >= {nblocks * (nblocks - 1) + 1}; got {name}={getattr(self, name)}; "
                f"lower nblocks, or give the rank per slice, e.g. rank=1"
            )
        if rank is not None and not 1 <= rank <= narrow:
            raise ValueError(f"rank must be in 1 .. {narrow} (the smaller side of a slice); got rank={rank}")
        self.rank = rank
        inner = narrow if rank is None else nblocks * rank
        self.right = nn.Parameter(torch.empty(nblocks, inner, self.in_block, device=device, dtype=dtype))
        self.left = nn.Parameter(torch.empty(nblocks, self.out_block, inner, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for factor in (self.right, self.left):
            # Both factors scale the variance by 1/√3, together by the 1/3 of nn.Linear.
            bound = (3**0.5 / factor.shape[-1]) ** 0.5
            nn.init.uniform_(factor, -bound, bound)
        self._reset_bias()

    def _factors(self) -> tuple[Tensor, ...]:
        return self.right, self.left

    def _product(self, x: Tensor, *factors: Tensor) -> Tensor:
        return ops.monarch_mm(x, *factors)

    def extra_repr(self) -> str:
        """Describe the layer in one line.

        Returns:
            The options that shape it.
        """
        return super().extra_repr() + ("" if self.rank is None else f", rank={self.rank}")


class BlockDiagonalLinear(StructuredLinear):
    """Linear layer with a block-diagonal matrix: ``nblocks`` groups of features that do not meet.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        nblocks: Blocks; sizes that it does not divide are padded.
        bias: Whether to add a bias.
        device: Where parameters live.
        dtype: Their dtype.

    Source:
        One factor of a Monarch matrix (arXiv 2204.00595, section 3), with nn.Linear's output variance.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int = 4,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, nblocks, bias, device, dtype)
        self.weight = nn.Parameter(torch.empty(nblocks, self.out_block, self.in_block, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        bound = 1 / math.sqrt(self.in_block)
        nn.init.uniform_(self.weight, -bound, bound)
        self._reset_bias()

    def _factors(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def _product(self, x: Tensor, *factors: Tensor) -> Tensor:
        return ops.block_diagonal_mm(x, *factors)
