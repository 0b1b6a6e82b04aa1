"""Monarch multiply in plain matrix products, for programs that other runtimes run."""

from __future__ import annotations

from torch import Tensor

from milkweed.ops._epilogue import finish


def monarch_mm(
    x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Multiply by a Monarch matrix; see `milkweed.ops.monarch_mm`."""
    k, q, p = right.shape
    l, s, r = left.shape  # noqa: E741 - the paper's letter
    blocks = x.reshape(-1, k, p).transpose(0, 1)
    if q % l:
        middle = (blocks @ right.transpose(1, 2)).transpose(0, 1).reshape(-1, r, l).permute(2, 0, 1)
    else:
        # Middle feature f goes to left block f mod l. With the rows of right in the order of these blocks the
        # permutation moves runs of q / l numbers instead of single ones. A runtime folds this new order of a parameter
        # into a constant when it loads the program.
        run = q // l
        ordered = right.reshape(k, run, l, p).permute(0, 3, 2, 1).reshape(k, p, q)
        middle = (blocks @ ordered).reshape(k, -1, l, run).permute(2, 1, 0, 3).reshape(l, -1, r)
    y = middle @ left.transpose(1, 2)
    if bias is not None:
        y = y + bias.reshape(s, l).T[:, None]
    return finish(y.permute(1, 2, 0).reshape(-1, s * l), None, activation)
