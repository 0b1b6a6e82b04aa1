"""S4: a state space with a diagonal plus low-rank matrix per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from milkweed import ssm
from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.nn.filters.base import check_rate
from milkweed.nn.filters.decay import DECAYS, decay_rate, inverse_decay_rate
from milkweed.nn.filters.s4d import check_groups
from milkweed.nn.filters.state_space import StateSpaceFilter
from milkweed.nn.filters.systems import CauchySystem, DenseSystem
from milkweed.nn.options import takes_options_of
from milkweed.ops import pairs
from milkweed.ops._common import without_autocast
from milkweed.ssm.discretize import DISCRETIZATIONS

COMBINATIONS = {"hippo": ssm.COMBINATIONS["hippo"]}
# The normal part of some bases does not decay, but a parameter that is a logarithm needs a rate above zero to start at.
_LEAST_RATE = 1e-4
# The decays that may reach Re Λ = 0.
_UNDAMPED = ("none", "relu")


class S4Filter(StateSpaceFilter):
    """State space with any HiPPO basis: every channel is filtered by its own N-dimensional system.

    ``y = K * u + D u`` as in [`milkweed.nn.filters.S4DFilter`][], but A = Λ - P P* keeps the low-rank part, with which
    a basis is exactly what it claims to be. In real coordinates A is a real matrix with A + Aᵀ <= 0 for every value of
    the parameters, so that no power of its discretisation grows, and kernels are real matrix products.

    Args:
        d_model: H, channels in and out.
        d_state: N, real state size per channel, even.
        init: ``"legs"``, ``"legt"``, ``"fout"`` or another basis of [`milkweed.ssm.nplr`][], or ``"hippo"``: LegS for
            the first half of the groups and FouT for the second.
        rank: Of P; the basis' own by default.
        discretization: ``"bilinear"`` or ``"zoh"``.
        n_ssm: Groups of channels (h modulo n_ssm) that share A and B; every channel has its own by default.
        decay: How the parameter ``A_real`` becomes -Re Λ: ``"exp"``, ``"softplus"``, ``"sigmoid"``, ``"relu"``, or
            ``"none"``, which lets training make the system unstable.
        backend: None, or ``"cauchy"`` to compute kernels by the classic route, [`milkweed.ssm.cauchy_kernel`][]. It is
            slower, needs ``discretization="bilinear"``, and compiles and exports for one length at a time.
        **options: Those of [`milkweed.nn.filters.StateSpaceFilter`][].

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        S4 (arXiv 2111.00396) and How to Train Your HiPPO (arXiv 2206.12037), with P = Q (SaShiMi, arXiv 2202.09729).
        The kernel is computed by blocked powers instead of its generating function, unless ``backend="cauchy"``.

    Example:
        >>> filter = mw.nn.filters.S4Filter(8, d_state=16, init="fout")
        >>> filter(torch.randn(2, 50, 8), rate=0.5).shape  # the same signal at twice the sampling rate
        torch.Size([2, 50, 8])
    """

    ssm_parameters = ("log_dt", "A_real", "A_imag", "B", "P")

    @takes_options_of(StateSpaceFilter)
    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: str = "legs",
        *,
        rank: int | None = None,
        discretization: str = "bilinear",
        n_ssm: int | None = None,
        decay: str = "exp",
        backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(d_model, **options)
        for name, given, known in (("discretization", discretization, DISCRETIZATIONS), ("decay", decay, DECAYS)):
            if given not in known:
                raise ValueError(unknown(name, given, known))
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even, at least 2 (conjugate pairs); got d_state={d_state}")
        _check_backend(backend, discretization, decay)
        self.d_state, self.init, self.discretization, self.decay = d_state, init, discretization, decay
        self.backend = backend
        self.n_ssm = check_groups(d_model, n_ssm)
        modes, groups = d_state // 2, self.n_ssm
        self.rank = self._check_basis(rank)  # before anything is allocated
        self.log_dt = self._empty(d_model)
        self.A_real, self.A_imag = self._empty(groups, modes), self._empty(groups, modes)
        self.P = self._empty(self.rank, groups, modes, 2)
        self.B = self._empty(groups, modes, 2)
        self.C = self._empty(self.channels * (2 if self.bidirectional else 1), d_model, modes, 2)
        self._stop_training(["A", "B", "C", "D", "P", "dt"])
        self.reset_parameters()

    def _check_basis(self, rank: int | None) -> int:
        """The rank of P; no system of the layer's size is computed for it."""
        known = [name for name, basis in ssm.BASES.items() if basis.correction is not None]
        if self.init not in (*COMBINATIONS, *ssm.BASES):
            raise ValueError(unknown("init", self.init, (*COMBINATIONS, *known)))
        names = COMBINATIONS.get(self.init, (self.init,))
        if self.n_ssm % len(names):
            raise ValueError(f"init={self.init!r} needs n_ssm to be a multiple of {len(names)}; got {self.n_ssm}")
        with torch.device("cpu"):
            # What is refused does not depend on the size.
            least = max(len(ssm.nplr(name, 2, None if rank is None else min(rank, 2)).P) for name in names)
        return least if rank is None else rank

    def _basis(self) -> list[ssm.NPLR]:
        """The initial system of every group."""
        names = COMBINATIONS.get(self.init, (self.init,))
        with torch.device("cpu"):
            found = [ssm.nplr(name, self.d_state, self.rank) for name in names]
        return [each for each in found for _ in range(self.n_ssm // len(names))]

    def _reset_system(self) -> None:
        if self.log_dt.is_meta:
            return
        groups = self._basis()
        Lambda = torch.stack([group.Lambda for group in groups])
        self.log_dt.copy_(ssm.log_timescale(self.d_model, self.dt_min, self.dt_max))
        rates = -Lambda.real if self.decay == "none" else (-Lambda.real).clamp_min(_LEAST_RATE)
        self.A_real.copy_(inverse_decay_rate(rates, self.decay))
        self.A_imag.copy_(Lambda.imag)
        self.P.copy_(torch.view_as_real(torch.stack([group.P for group in groups], 1)))
        self.B.copy_(torch.view_as_real(torch.stack([group.B for group in groups])))
        self.C.normal_(std=0.5**0.5)

    def system(self, rate: float = 1.0) -> DenseSystem:
        """One dense system per channel, in the real coordinates [Re z, Im z]."""
        check_rate(rate)
        dtype = torch.promote_types(self.log_dt.dtype, torch.float32)
        precise = dtype if self.log_dt.device.type == "mps" else torch.float64
        dt = torch.exp(self.log_dt.to(precise)) * rate
        a, b = self._discretized(dt)
        a, b, dt = a.to(dtype), b.to(dtype), dt.to(dtype)
        # 2 Re(C z)
        c = torch.cat([2 * self.C[..., 0], -2 * self.C[..., 1]], -1).to(dtype)
        if self.backend is None:
            return DenseSystem(a, b, c)
        copies = self.d_model // self.n_ssm
        Lambda = torch.complex(-decay_rate(self.A_real.to(dtype), self.decay), self.A_imag.to(dtype))
        P, B = (torch.complex(*part.to(dtype).unbind(-1)) for part in (self.P, self.B))
        return CauchySystem(a, b, c, Lambda.repeat(copies, 1), P.repeat(1, copies, 1), B.repeat(copies, 1), dt)

    def _discretized(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Ā (H, N, N) and B̄ (H, N), in the precision of dt (H,)."""
        copies = self.d_model // self.n_ssm
        A = torch.stack([-decay_rate(self.A_real.to(dt.dtype), self.decay), self.A_imag.to(dt.dtype)], -1)
        A, B, P = A.repeat(copies, 1, 1), self.B.to(dt.dtype).repeat(copies, 1, 1), self.P.to(dt.dtype)
        with without_autocast(A):
            if self.discretization == "bilinear":
                return ssm.discretize_dplr(A, P.repeat(1, copies, 1, 1), B, dt)
            # rot(Λ) - 2 Σ_r w_r w_rᵀ with w_r = [Re p_r, Im p_r]
            w = torch.cat([P[..., 0], P[..., 1]], -1)
            correction = (w[..., :, None] * w[..., None, :]).sum(0).repeat(copies, 1, 1)
            dense = pairs.rotation(A) - 2 * correction
            return ssm.discretize(dense, torch.cat([B[..., 0], B[..., 1]], -1), dt, "zoh")

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, d_state={self.d_state}, init={self.init!r}, rank={self.rank}, "
            f"discretization={self.discretization!r}, bidirectional={self.bidirectional}"
            + (f", backend={self.backend!r}" if self.backend else "")
        )


def _check_backend(backend: str | None, discretization: str, decay: str) -> None:
    if backend not in (None, "cauchy"):
        raise ValueError(unknown("backend", backend, ("cauchy",)))
    if backend == "cauchy" and discretization != "bilinear":
        raise ValueError(
            "backend='cauchy' needs discretization='bilinear', which turns the generating function into Cauchy sums; "
            f"got discretization={discretization!r}"
        )
    if backend == "cauchy" and decay in _UNDAMPED:
        raise ValueError(
            f"backend='cauchy' needs Re Λ < 0, as its sums have poles at 0; got decay={decay!r}; use decay='exp'"
        )
