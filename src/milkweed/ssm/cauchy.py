"""The classic S4 kernel: its generating function at the roots of unity, then an inverse FFT."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milkweed._arguments import check_real, checked, whole
from milkweed.ssm.discretize import discretize


@checked
def cauchy_kernel(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Evaluate the kernel of a bilinearly discretised diagonal minus low-rank system by Cauchy sums.

    A second opinion on [`milkweed.ops.dense_ssm_kernel`][], and the route that others take: an (H, N/2, L/2 + 1) array
    of complex quotients, 1 + rank of them squared. With ω the L-th roots of unity and z = 2 (1 - ω) / (1 + ω), the
    generating function Σ_l K_l ω^l of the first L values is 2 / (1 + ω) · C̃ (z/Δ - A)⁻¹ B with C̃ = C (I - Āᴸ). The
    resolvent of the low-rank part follows by Woodbury. At ω = -1, which even L have, the limit is (Δ/2) C̃ B.

    Args:
        Lambda: (H, M) complex, one of each conjugate pair, with negative real part: its inverse is taken at ω = 1.
        P: (rank, H, M) complex.
        B: (H, M) complex.
        C: (..., H, M) complex, readouts that share the sums.
        dt: (H,).
        length: L >= 1.

    Returns:
        (..., H, L), real.

    Raises:
        ValueError: A shape or the length does not fit.
        TypeError: A tensor is not complex, or ``dt`` not real.

    Source:
        S4 (arXiv 2111.00396), section 3.2 and appendix C; the limit at -1 is missing there.

    Example:
        >>> Lambda, P, B, _ = mw.ssm.nplr("legs", 8)
        >>> Lambda, P, B = Lambda.expand(2, 4), P[:, None].expand(1, 2, 4), B.expand(2, 4)  # two channels
        >>> C, dt = torch.randn(2, 4, dtype=torch.complex128), torch.tensor([0.01, 0.1]).double()
        >>> mw.ssm.cauchy_kernel(Lambda, P, B, C, dt, length=100).shape
        torch.Size([2, 100])
    """
    for name, tensor in {"Lambda": Lambda, "P": P, "B": B, "C": C}.items():
        if not tensor.is_complex():
            raise TypeError(f"{name} must be complex; got {tensor.dtype}")
    check_real(dt=dt)
    for name, tensor, shape in (
        ("P", P, (*P.shape[:1], *Lambda.shape)),
        ("B", B, Lambda.shape),
        ("C", C, (*C.shape[:-2], *Lambda.shape)),
        ("dt", dt, Lambda.shape[:1]),
    ):
        if Lambda.ndim != 2 or tensor.shape != shape:
            raise ValueError(
                f"Lambda must be (H, M), and {name} fit it; got shapes {tuple(Lambda.shape)} and {tuple(tensor.shape)}"
            )
    length = whole("length", length)
    pairs = [torch.cat([x, x.conj()], -1) for x in (Lambda, P, B)]
    A = torch.diag_embed(pairs[0]) - torch.einsum("rhn,rhm->hnm", pairs[1], pairs[1].conj())
    a, _ = discretize(A, pairs[2], dt, "bilinear")
    full_c = torch.cat([C, C.conj()], -1).reshape(-1, *pairs[0].shape)
    c = full_c - torch.einsum("ahn,hnm->ahm", full_c, torch.linalg.matrix_power(a, length))
    index = torch.arange(length // 2 + 1, dtype=dt.dtype, device=dt.device)
    omega = torch.polar(torch.ones_like(index), -2 * math.pi / length * index)
    last = length % 2 == 0  # then the last one is -1
    omega = omega[:-1] if last else omega
    z = 2 * (1 - omega) / (1 + omega) / dt[:, None]
    resolvent = 1 / (z[:, None] - pairs[0][..., None])  # (H, 2M, frequencies)

    def between(left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("ahn,bhn,hnk->hkab", left, right, resolvent)

    p, readouts = pairs[1], len(c)
    r = between(torch.cat([c, p.conj()]), torch.cat([pairs[2][None], p]))
    inner = torch.eye(len(p), dtype=r.dtype, device=r.device) + r[..., readouts:, 1:]
    low = r[..., :readouts, 1:] @ torch.linalg.solve(inner, r[..., readouts:, :1])
    spectrum = 2 / (1 + omega) * (r[..., :readouts, 0] - low[..., 0]).movedim(-1, 0)
    if last:
        limit = dt / 2 * (c * pairs[2]).sum(-1)
        spectrum = torch.cat([spectrum, limit[..., None]], -1)
    return torch.fft.irfft(spectrum, length).reshape(*C.shape[:-1], length)
