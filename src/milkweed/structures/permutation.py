"""Permutations as matrices."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from milkweed._arguments import check_size, checked
from milkweed._registry import register
from milkweed.structures.base import StructuredMatrix


@register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Permutation(StructuredMatrix):
    """Permutation matrix: (P x)[i] = x[index[i]].

    It has no numbers, hence no dtype of its own (``torch.bool``, which promotes to any).

    Args:
        index: (n,), every integer from 0 to n - 1 once.

    Example:
        >>> P = mw.structures.Permutation(torch.tensor([2, 0, 1]))
        >>> P @ torch.tensor([10.0, 20.0, 30.0])
        tensor([30., 10., 20.])
    """

    index: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.index, Tensor) or self.index.dtype != torch.int64 or self.index.ndim != 1:
            raise TypeError(f"index must be a one-dimensional int64 tensor; got {self.index!r}")
        if self.index.is_meta or torch.compiler.is_compiling():
            return
        if self.index.numel() == 0 or not torch.equal(
            self.index.sort().values, torch.arange(len(self.index)).to(self.index)
        ):
            raise ValueError(f"index must hold every integer from 0 to n - 1 once; got {self.index.tolist()[:16]} ...")

    @staticmethod
    @checked
    def stride(rows: int, columns: int, device: torch.device | str | None = None) -> Permutation:
        """Transpose a vector read as a rows × columns table in row-major order.

        Args:
            rows: Rows of the table.
            columns: Columns of the table.
            device: Where the index lives.

        Returns:
            P with (P x)[j * rows + i] = x[i * columns + j]; the paper's P for rows = columns = √n.

        Raises:
            ValueError: A size is below 1.
        """
        check_size(rows=rows, columns=columns)
        return Permutation(torch.arange(rows * columns, device=device).view(rows, columns).T.reshape(-1))

    @property
    def _full_shape(self) -> tuple[int, int]:
        return (self.index.shape[0],) * 2

    def _apply(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)

    def _transpose(self) -> StructuredMatrix:
        return Permutation(self.index.argsort())

    def _flops(self) -> int:
        return 0

    def inverse(self) -> StructuredMatrix:
        """Undo the permutation."""
        return self._transpose()

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """The sign of the permutation, and zero, in torch's default dtype."""
        index, cycles = self.index.tolist(), 0
        seen = [False] * len(index)
        for start in range(len(index)):
            cycles += not seen[start]
            while not seen[start]:
                seen[start] = True
                start = index[start]
        dtype = torch.get_default_dtype()
        sign = torch.tensor(1.0 if (len(index) - cycles) % 2 == 0 else -1.0, dtype=dtype, device=self.index.device)
        return sign, torch.zeros_like(sign)
