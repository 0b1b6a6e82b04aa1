"""The feed-forward layer of M2-BERT: a gated linear unit of block-diagonal matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed._arguments import check_probability, check_size, checked, plain
from milkweed.nn.structured_linear import BlockDiagonalLinear
from milkweed.ops._common import autocast_dtype, needs_plain_formula
from milkweed.ops._gemm import linear, prefers_onednn

# Rows of a feed-forward layer taken together where no graph is kept: what is between the matrices then stays in cache.
_ROWS = 512


class BlockDiagonalGlu(nn.Module):
    """Feed-forward layer of single block-diagonal matrices: ``down(gelu(g) * h)`` with g, h the halves of ``up(x)``.

    The first half comes from the first half of the blocks: groups of features meet in pairs.

    Args:
        d_model: Channels in and out.
        d_hidden: Channels between.
        nblocks: Blocks of both matrices.
        dropout: Probability, before ``down``.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: A size is below 1, there are more blocks than features, or the dropout is no probability.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), the feature mixing of M2-BERT.

    Example:
        >>> mw.nn.BlockDiagonalGlu(64, 128, nblocks=4)(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    @checked(but=("dropout",))
    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        nblocks: int = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size(d_model=d_model, d_hidden=d_hidden, nblocks=nblocks)
        dropout = plain(dropout)
        check_probability(dropout=dropout)
        self.up = BlockDiagonalLinear(d_model, 2 * d_hidden, nblocks, bias=False, device=device, dtype=dtype)
        self.down = BlockDiagonalLinear(d_hidden, d_model, nblocks, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.up.reset_parameters()
        self.down.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension.

        Args:
            x: (..., d_model).

        Returns:
            (..., d_model).
        """
        if self._goes_by_rows(x):
            return _glu_by_rows(x.reshape(-1, x.shape[-1]), self.up, self.down).reshape(x.shape)
        gate, hidden = self.up(x).chunk(2, -1)
        return self.down(self.dropout(F.gelu(gate) * hidden))

    def _goes_by_rows(self, x: Tensor) -> bool:
        """Whether the shortcut gives what the layers give: nobody derives, traces or looks between the matrices."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or (self.training and self.dropout.p):
            return False
        up, down = self.up, self.down
        if type(up) is not BlockDiagonalLinear or type(down) is not BlockDiagonalLinear or down.bias is None:
            return False
        sizes = (
            up.in_features == x.shape[-1] == up.weight[:, 0].numel() and down.in_features == down.weight[:, 0].numel()
        )
        halves = up.weight.shape[:2] == (down.weight.shape[0], 2 * down.weight.shape[2]) and up.nblocks % 2 == 0
        if not (sizes and halves and down.out_features == down.weight[..., 0].numel()):
            return False
        if any(part._forward_hooks or part._forward_pre_hooks for part in (up, down, self.dropout)):
            return False
        plain = x.dtype == up.weight.dtype == down.weight.dtype and autocast_dtype(x) is None
        return plain and x.device.type == "cpu" and needs_plain_formula(x, up.weight, down.weight) is None


def _glu_by_rows(x: Tensor, up: BlockDiagonalLinear, down: BlockDiagonalLinear) -> Tensor:
    """``down(gelu(g) * h)`` for (N, d_model) rows, a block of rows at a time and without copies in between."""
    assert down.bias is not None
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    nblocks, width = down.nblocks, down.weight.shape[2]
    biases = down.bias.chunk(nblocks)
    multiply = linear if prefers_onednn(x) else F.linear
    for rows, target in zip(x.split(_ROWS), out.split(_ROWS), strict=True):
        between = [multiply(part, weight) for part, weight in zip(rows.chunk(nblocks, -1), up.weight, strict=True)]
        products = [
            torch.ops.aten.gelu_(gate).mul_(hidden)
            for gate, hidden in zip(between[: nblocks // 2], between[nblocks // 2 :], strict=True)
        ]
        # Every block of `up` makes the inputs of two blocks of `down`.
        for index, (bias, part) in enumerate(zip(biases, target.chunk(nblocks, -1), strict=True)):
            inputs = products[index // 2].narrow(-1, index % 2 * width, width)
            part.copy_(multiply(inputs, down.weight[index], bias))
    return out
