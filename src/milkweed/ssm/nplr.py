"""Normal plus low rank: HiPPO matrices in the eigenbasis of their normal part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.ops import pairs
from milkweed.ssm.hippo import BASES, hippo


class NPLR(NamedTuple):
    """Diagonal minus low rank, in one of each conjugate pair of modes: M of them.

    Attributes:
        Lambda: (M,) complex128, frequencies ascending from 0.
        P: (rank, M) complex128.
        B: (M,) complex128; V's phases are those that make it real and positive, unless it is clipped.
        V: (N, M) complex128: x = 2 Re(V z), and C x = 2 Re((C V) z).

    Example:
        >>> system = mw.ssm.nplr("legt", 8)
        >>> isinstance(system, mw.ssm.NPLR), system.Lambda.shape, system.P.shape
        (True, torch.Size([4]), torch.Size([2, 4]))
    """

    Lambda: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


@checked
def nplr(name: str, d_state: int, rank: int | None = None, *, b_clip: float | None = None) -> NPLR:
    """Give a HiPPO basis as diagonal minus low rank.

    z' = Λ z - Σ_r p_r · 2 Re(p_r* z) + B u has the states x = 2 Re(V z) of [`milkweed.ssm.hippo`][], with p_r the rows
    of P. It has M = ⌈N/2⌉ modes. A real mode, which odd N have, is its own conjugate and enters with 1/√2 of its
    vector. The Fourier bases have odd sizes only: an even ``d_state`` gives the M modes of ``d_state - 1`` functions.

    Args:
        name: ``legs``, ``legsd``, ``legt``, ``fout``, ``fourier_decay``, ``foud``, ``lagt`` or ``glagt``.
        d_state: N.
        rank: Rows of P; zero rows are added to the basis' own. None for just those.
        b_clip: Clip the imaginary part of B to [-b_clip, b_clip], in eigenvectors whose first entry is real. Only to
            reproduce how public S4 code (version 4) starts, with 2.0: of LegS, more than half of B is lost.

    Returns:
        Λ, P, B and V.

    Raises:
        ValueError: The basis is unknown or not normal plus low rank, ``rank`` is below the basis' own,
            or ``b_clip`` is not positive.

    Source:
        S4 (arXiv 2111.00396), theorem 1 and appendix C; tied as in SaShiMi (arXiv 2202.09729), section 4. The
        eigenvectors are those of a Hermitian matrix, hence orthonormal to rounding. ``b_clip`` is in no paper.

    Example:
        >>> Lambda, P, B, V = mw.ssm.nplr("legs", 16)
        >>> Lambda.shape, P.shape, Lambda.real[0].item()
        (torch.Size([8]), torch.Size([1, 8]), -0.5)
    """
    entry = BASES.get(name)
    if entry is None or entry.correction is None:
        normal = [key for key, value in BASES.items() if value.correction is not None]
        if entry is None:
            raise ValueError(unknown("name", name, normal))
        fix = "; use 'legt', the same system in other coordinates" if name == "lmu" else ""
        raise ValueError(f"name={name!r} is not normal plus low rank{fix}. These are: {', '.join(sorted(normal))}")
    if b_clip is not None and not b_clip > 0:
        raise ValueError(f"b_clip must be above 0, or None for the basis as it is; got {b_clip}")
    functions = d_state - 1 if entry.fourier and d_state % 2 == 0 and d_state > 0 else d_state
    A, B = hippo(name, functions)
    P = entry.correction(functions)
    if rank is not None and rank < len(P):
        raise ValueError(f"name={name!r} needs rank >= {len(P)}; got rank={rank}")
    frequencies, V = _eigenpairs(A + P.T @ P, B)
    P = torch.cat([P, P.new_zeros((rank or len(P)) - len(P), functions)])
    Lambda = torch.complex(torch.full_like(frequencies, entry.damping), frequencies)
    b = V.conj().T @ B.to(V)
    if b_clip is not None:
        phase = torch.exp(-1j * torch.angle(V[0]))  # to those of LAPACK, which that code has
        V, b = V * phase, b * phase.conj()
        b = torch.complex(b.real, b.imag.clamp(-b_clip, b_clip))
    return NPLR(Lambda, P.to(V) @ V.conj(), b, V)


def _eigenpairs(normal: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative frequencies (M,) of a damped skew matrix and their vectors (N, M)."""
    # -i S is Hermitian: its real eigenvalues are the frequencies, found far more exactly than by a general eig.
    frequencies, V = torch.linalg.eigh(-0.5j * (normal - normal.T))
    middle = len(normal) // 2
    frequencies, V = frequencies[middle:].clone(), V[:, middle:].clone()
    V = V * torch.exp(1j * torch.angle(V.conj().T @ B.to(V)))
    if len(normal) % 2:
        frequencies[0] = 0
        V[:, 0] = V[:, 0].real / 2**0.5
    return frequencies, V


@checked
def real_dplr(Lambda: Tensor, P: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Give diagonal minus low rank in the real coordinates [Re z, Im z].

    A = rot(Λ) - 2 Σ_r w_r w_rᵀ with w_r = [Re p_r, Im p_r]. As long as Re Λ <= 0, A + Aᵀ <= 0 whatever P is, so that no
    discretisation of it grows. The readout 2 Re(C z) is [2 Re C, -2 Im C] times the real state.

    Args:
        Lambda: (..., M) complex.
        P: (..., rank, M) complex.
        B: (..., M) complex.

    Returns:
        A (..., 2M, 2M) and B (..., 2M), real.

    Raises:
        ValueError: The shapes do not fit, or an argument is not complex.

    Source:
        S4 (arXiv 2111.00396) with P = Q, rewritten from complex pairs into real coordinates.

    Example:
        >>> Lambda, P, B, _ = mw.ssm.nplr("legs", 8)
        >>> A, B = mw.ssm.real_dplr(Lambda, P, B)
        >>> A.shape, A.is_complex()
        (torch.Size([8, 8]), False)
    """
    if not (Lambda.is_complex() and P.is_complex() and B.is_complex()):
        raise ValueError(f"Lambda, P and B must be complex; got {Lambda.dtype}, {P.dtype} and {B.dtype}")
    if P.ndim < 2 or P.shape[-1] != Lambda.shape[-1] or B.shape[-1] != Lambda.shape[-1]:
        raise ValueError(
            f"expected Lambda (..., M), P (..., rank, M) and B (..., M); "
            f"got {tuple(Lambda.shape)}, {tuple(P.shape)} and {tuple(B.shape)}"
        )
    w = torch.cat([P.real, P.imag], -1)
    return pairs.rotation(torch.view_as_real(Lambda)) - 2 * w.mT @ w, torch.cat([B.real, B.imag], -1)
