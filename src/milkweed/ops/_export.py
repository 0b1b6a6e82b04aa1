"""What the backends of exported programs share: sizes that are not known yet, loops, tables of cosines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from milkweed.ops._common import is_known
from milkweed.ops.pairs import full_turn

# Loops of so few turns are written out.
_FEW = 8


def largest(size: int) -> int | None:
    """The largest value that a size can have in the program being traced; None if there is no bound."""
    if is_known(size):
        return int(size)
    node = size.node  # type: ignore[attr-defined]
    upper = node.shape_env.bound_sympy(node.expr).upper
    return int(upper) if upper.is_Integer else None


def balanced(size: int, least: int, most: int) -> int:
    """A power of two near the square root of a size, within bounds."""
    return int(min(max(1 << round(math.log2(max(size, 1)) / 2), least), most))


def pieces(length: int, size: int) -> int:
    """How many pieces of a size hold a length, perhaps one more than needed if the length is not known."""
    if is_known(length):
        return -(-length // size)
    # At least two: whether there is one, a trace would have to ask, and a program be for one answer. It sees that
    # there are more where what is added to the least length is a multiple of the size.
    node = length.node  # type: ignore[attr-defined]
    least = node.shape_env.bound_sympy(node.expr).lower
    before = int(least) - 1 if least.is_Integer and least > 0 else 0
    added = max(2 * size - before, size - 1)
    added += -(before + added) % size
    return (length + added) // size


def first(x: Tensor, length: int) -> Tensor:
    """The first numbers of the last dimension."""
    if is_known(length):
        return x[..., :length]
    # Selected, not cut: to cut is to ask whether the length is that of the whole.
    return x.index_select(-1, torch.arange(length, device=x.device))


def cos_sin(a: Tensor, b: Tensor, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2π a b / points, for integers a and b."""
    # Reduced as integers: rounding would grow with the number of turns. The modulus is a tensor, as ONNX has no other.
    turns = torch.remainder(a * b, torch.full((1,), points, dtype=torch.int64, device=a.device))
    angle = turns.to(dtype) / points * full_turn(dtype)
    return angle.cos(), angle.sin()


def scan(
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: Tensor, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Run ``carry, output = step(carry, input)`` along the first dimension: the last carry, and all outputs."""
    count = inputs.shape[0]
    if torch.compiler.is_compiling() and not (is_known(count) and count <= _FEW):
        from torch._higher_order_ops.scan import scan as traced  # here, as its import takes the whole compiler

        # Outputs may not be views of what is carried on.
        def cloned(carry: Tensor, each: Tensor) -> tuple[Tensor, Tensor]:
            carry, output = step(carry, each)
            return carry, output.clone()

        with warnings.catch_warnings():
            # The tracer looks at the gradient of whatever it is given.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            carry, outputs = traced(cloned, start.clone(memory_format=torch.contiguous_format), inputs)
        return carry, outputs
    carry, found = start, []
    for each in inputs.unbind():
        carry, output = step(carry, each)
        found.append(output)
    return carry, torch.stack(found)
