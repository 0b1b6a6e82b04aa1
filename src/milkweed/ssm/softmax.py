"""The softmax kernel of diagonal state spaces (DSS)."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed import ops
from milkweed._arguments import check_kind, check_pairs, whole
from milkweed.ops import pairs

# The paper's: 1/x becomes conj(x)/(|x|² + 1e-7), which is bounded where a complex softmax has a pole.
_EPSILON = 1e-7


def softmax_kernel(W: Tensor, A: Tensor, dt_a: Tensor, length: int, *, growing: bool = True) -> Tensor:
    """Evaluate the DSS_softmax kernel, every mode's exponentials divided by their sum over the whole length.

    K_k = 2 Re Σ_n W_n / A_n · exp(z_n k) / Σ_j exp(z_n j) for k = 0 .. L - 1, with z = dt_a. The sum over j is the
    state that a constant input leaves behind, so that it takes about √L exponentials per mode as the kernel does. A
    mode with Re A > 0 is the kernel of -A run backwards: nothing overflows.

    DSS_exp needs no function: W (e^z - 1)/A e^{zk} is the ``"zoh"`` kernel with B = 1.

    Args:
        W: (..., H, N, 2) real pairs, one of each conjugate pair of modes.
        A: (H, N, 2), with real parts of either sign.
        dt_a: (H, N, 2), A times the step.
        length: L >= 1. Kernels of two lengths are not parts of one another.
        growing: Whether some Re A may be above 0; False saves half of the work.

    Returns:
        (..., H, L), real.

    Raises:
        ValueError: A shape or the length does not fit.
        TypeError: A tensor is not real floating point.

    Source:
        DSS (arXiv 2203.14343), proposition 1(b), with the regularised reciprocals and the maximum of its appendix A.2.
        The paper has all N modes and the real part, here are conjugate pairs: its W is 2 W. Its code regularises the
        product A (e^{zL} - 1), which small steps and short lengths make small too; here A and the sum each are.

    Example:
        >>> W, A = torch.randn(1, 3, 2), torch.tensor([[[-0.5, 1.0], [-0.5, 2.0], [-0.5, 3.0]]])
        >>> mw.ssm.softmax_kernel(W, A, 0.1 * A, length=50).shape
        torch.Size([1, 50])
    """
    check_pairs(W=W, A=A, dt_a=dt_a)
    check_kind(bool, growing=growing)
    length = whole("length", length)
    if W.shape[-3:] != A.shape or A.shape != dt_a.shape or A.ndim != 3:
        shapes = ", ".join(str(tuple(each.shape)) for each in (W, A, dt_a))
        raise ValueError(f"W, A and dt_a must be (..., H, N, 2), (H, N, 2) and (H, N, 2); got shapes {shapes}")
    flipped = (dt_a[..., :1] > 0) if growing else None
    z = dt_a if flipped is None else torch.where(flipped, -dt_a, dt_a)
    total = ops.diagonal_ssm_state(z.new_ones(z.shape[0], length), z)
    c = pairs.multiply(W, pairs.multiply(_bounded_reciprocal(A), _bounded_reciprocal(total)))
    if flipped is None:
        return ops.diagonal_ssm_kernel(c, z, length)
    # One call, as both share their exponentials.
    split = torch.stack([c.masked_fill(flipped, 0), c.masked_fill(~flipped, 0)])
    falling, rising = ops.diagonal_ssm_kernel(split, z, length)
    return falling + rising.flip(-1)


def _bounded_reciprocal(x: Tensor) -> Tensor:
    return torch.stack([x[..., 0], -x[..., 1]], -1) / (x.square().sum(-1, keepdim=True) + _EPSILON)
