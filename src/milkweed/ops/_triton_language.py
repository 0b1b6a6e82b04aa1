# mypy: disable-error-code="no-untyped-def"
"""What Triton's language lacks."""

from __future__ import annotations

import triton
import triton.language as tl

from milkweed.ops._triton import INTERPRETING

_WIDEN = tl.constexpr(INTERPRETING)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """``total + a @ b`` in float32."""
    # The interpreter holds bfloat16 as integers and would multiply those; float32 holds the same numbers.
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
