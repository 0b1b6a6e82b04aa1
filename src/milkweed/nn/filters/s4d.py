"""S4D: a diagonal state space per channel."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from milkweed import ssm
from milkweed._arguments import check_kind, checked
from milkweed._suggest import unknown
from milkweed.nn.filters.base import check_rate
from milkweed.nn.filters.decay import DECAYS, decay_rate, inverse_decay_rate
from milkweed.nn.filters.state_space import StateSpaceFilter
from milkweed.nn.filters.systems import DiagonalSystem, SoftmaxSystem
from milkweed.nn.options import takes_options_of
from milkweed.ops import pairs
from milkweed.ssm.discretize import DISCRETIZATIONS

# How continuous time becomes a kernel; "dss" leaves no discrete system.
KERNELS = (*DISCRETIZATIONS, "dss")
B_INITS = ("alternating", "legs", "ones", "random")


_INIT_OPTIONS = {
    option.name for option in inspect.signature(ssm.diagonal).parameters.values() if option.kind is option.KEYWORD_ONLY
} - {"generator"}


class S4DFilter(StateSpaceFilter):
    """Diagonal state space: every channel is filtered by its own N-dimensional system.

    ``y = K * u + D u`` where ``K_l = C Ā^l B̄`` has length L, computed as a long convolution. All parameters are real;
    complex modes are pairs of which one of each conjugate couple is kept, so ``d_state`` counts real state dimensions
    whatever the initialisation.

    Args:
        d_model: H, channels in and out.
        d_state: N, real state size per channel; even unless ``init="real"``.
        init: ``"legs"``, ``"inv"``, ``"inv2"``, ``"lin"``, ``"quad"``, ``"fout"``, ``"rand"`` or ``"real"``, or the
            combinations ``"hippo"`` and ``"diag"`` of two, see [`milkweed.ssm.diagonal`][].
        discretization: ``"zoh"``, ``"bilinear"``, or ``"dss"`` for the DSS_softmax kernel, where every mode is divided
            by its sum over the sequence, see [`milkweed.ssm.softmax_kernel`][]. It depends on the length, so that there
            are no states, no stepper and no padding (``lengths`` other than L), and with ``decay="none"`` modes may
            grow. The other kernel of that paper, DSS_exp, is ``"zoh"`` as it is.
        init_options: Further arguments of [`milkweed.ssm.diagonal`][], e.g. ``{"scale_imag": 2.0}``.
        n_ssm: Groups of channels (h modulo n_ssm) that share A and B; every channel has its own by default.
        b_init: None for B = 1, which loses no generality as it multiplies C, or a trained B that starts at ``"ones"``,
            ``"alternating"`` signs, ``"random"`` or, for ``init="legs"``, the ``"legs"`` vector.
        decay: How the parameter ``A_real`` becomes -Re A: ``"exp"``, ``"softplus"``, ``"sigmoid"``, ``"relu"``, or
            ``"none"``, which lets training make the system unstable, except for ``"dss"``.
        dt_tie: One step per channel; otherwise one per mode.
        **options: Those of [`milkweed.nn.filters.StateSpaceFilter`][].

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        S4D (arXiv 2206.11893); its section 4.2 for B, and for the parameterisations of Re A. DSS (arXiv 2203.14343) has
        a W of variance 1 in each part and takes the real part; its W is 2 C here, of variance 2.

    Example:
        >>> filter = mw.nn.filters.S4DFilter(8, init="inv", channels=2)
        >>> filter(torch.randn(2, 50, 8)).shape  # (B, L, channels d_model)
        torch.Size([2, 50, 16])
    """

    ssm_parameters = ("log_dt", "A_real", "A_imag", "B")

    @takes_options_of(StateSpaceFilter)
    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: str = "legs",
        *,
        discretization: str = "zoh",
        init_options: Mapping[str, Any] | None = None,
        n_ssm: int | None = None,
        b_init: str | None = None,
        decay: str = "exp",
        dt_tie: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(d_model, **options)
        if not isinstance(init_options, Mapping | None):
            raise TypeError(
                f"init_options must be a mapping, e.g. {{'scale_imag': 2.0}}, or None; got {init_options!r}"
            )
        for name, given, known in (
            ("discretization", discretization, KERNELS),
            ("decay", decay, DECAYS),
            ("b_init", b_init, (*B_INITS, None)),
        ):
            if given not in known:
                raise ValueError(unknown(name, given, [k for k in known if k]))
        self.d_state, self.init, self.discretization, self.decay = d_state, init, discretization, decay
        for option in init_options or {}:
            if option not in _INIT_OPTIONS:
                raise ValueError(unknown("init_options", option, _INIT_OPTIONS))
        self.init_options = dict(init_options or {})
        self.n_ssm = check_groups(d_model, n_ssm)
        self.b_init = b_init
        if b_init == "legs" and init != "legs":
            raise ValueError(f"b_init='legs' is the vector of init='legs'; got init={init!r}")
        modes, real = d_state if init == "real" else d_state // 2, init == "real"
        self.log_dt = self._empty(d_model) if dt_tie else self._empty(d_model, modes)
        self._eigenvalues()  # refuses a bad init, size or option before anything large is allocated
        self.A_real = self._empty(self.n_ssm, modes)
        self.A_imag = None if real else self._empty(self.n_ssm, modes)
        self.B = None if b_init is None else self._empty(self.n_ssm, modes, 1 if real else 2)
        self.C = self._empty(self.channels * (2 if self.bidirectional else 1), d_model, modes, 1 if real else 2)
        self._stop_training(["A", "C", "D", "dt", *(["B"] if b_init else [])])
        self.reset_parameters()

    def _eigenvalues(self) -> Tensor:
        """(n_ssm, N') of A, complex or real; groups differ only where something is random."""
        random = self.init == "rand" or any(self.init_options.get(f"random_{part}") for part in ("real", "imag"))
        combined = self.init in ssm.COMBINATIONS
        groups = self.n_ssm if random or combined else 1
        if not self.log_dt.is_meta:
            found = ssm.diagonal(self.init, self.d_state, groups, **self.init_options)
            return found.expand(self.n_ssm, found.shape[-1])
        # On the meta device only what would be refused matters: the same for a few groups as for all.
        with torch.device("meta"):
            few = groups if combined and groups % 2 else 1 + combined
            return ssm.diagonal(self.init, self.d_state, few, **self.init_options)

    def _reset_system(self) -> None:
        if self.log_dt.is_meta:
            return
        A = self._eigenvalues()
        self.log_dt.copy_(_spread(ssm.log_timescale(self.d_model, self.dt_min, self.dt_max), self.log_dt))
        self.A_real.copy_(inverse_decay_rate(-A.real if A.is_complex() else -A, self.decay))
        if self.A_imag is not None:
            self.A_imag.copy_(A.imag)
        if self.B is not None:
            self._reset_b(self.B)
        # A complex normal has variance 1/2 in each part; a real mode counts twice, see `system`.
        self.C.normal_(std=0.5**0.5)

    def _reset_b(self, B: Tensor) -> None:
        B.zero_()
        if self.b_init == "random":
            B.normal_(std=B.shape[-1] ** -0.5)
        elif self.b_init == "legs":
            # Half of it: the diagonal system of LegS has B/2.
            B[..., 0] = ssm.nplr("legs", self.d_state).B.real / 2
        else:
            B[..., 0] = 1
        if self.b_init == "alternating":
            B[..., 1::2, 0] = -1

    def system(self, rate: float = 1.0) -> DiagonalSystem | SoftmaxSystem:
        """One diagonal system per channel; for ``"dss"`` only its kernels."""
        check_rate(rate)
        dtype = torch.promote_types(self.log_dt.dtype, torch.float32)
        log_dt = self.log_dt if self.log_dt.ndim == 2 else self.log_dt[:, None]
        dt = torch.exp(log_dt.to(dtype)) * rate
        copies = self.d_model // self.n_ssm
        re = -decay_rate(self.A_real.to(dtype), self.decay)
        im = torch.zeros_like(re) if self.A_imag is None else self.A_imag.to(dtype)
        A = torch.stack([re, im], -1).repeat(copies, 1, 1)
        dt_a = A * dt[..., None]
        # Kernels take twice the real part, for a conjugate couple; a real mode is only one.
        c = self.C.to(dtype) if self.A_imag is not None else _as_pair(self.C.to(dtype) / 2**0.5)
        B = None if self.B is None else _as_pair(self.B.to(dtype)).repeat(copies, 1, 1)
        if self.discretization == "dss":
            return SoftmaxSystem(A, dt_a, c if B is None else pairs.multiply(c, B), growing=self.decay == "none")
        exponent, scale = ssm.discretize_diagonal(dt_a, self.discretization)
        b = scale * dt[..., None]
        return DiagonalSystem(exponent, b if B is None else pairs.multiply(b, B), c)

    def _check(self, u: Tensor, lengths: Tensor | None) -> None:
        super()._check(u, lengths)
        if self.discretization != "dss" or lengths is None:
            return
        # What cannot be looked at may be padding.
        if torch.compiler.is_compiling() or lengths.is_meta or (lengths != u.shape[-2]).any():
            raise ValueError(
                "discretization='dss' takes no padding, as its kernel depends on the sequence's length; "
                f"lengths must all be L={u.shape[-2]}, and be left out when compiling; batch sequences of one length"
            )

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, d_state={self.d_state}, init={self.init!r}, discretization={self.discretization!r}, "
            f"bidirectional={self.bidirectional}"
        )


def check_groups(d_model: int, n_ssm: int | None) -> int:
    """Choose (all by default) or check the number of groups of channels that share a system."""
    check_kind(int, optional=True, n_ssm=n_ssm)
    groups = d_model if n_ssm is None else n_ssm
    if groups < 1 or d_model % groups:
        raise ValueError(f"n_ssm must divide d_model={d_model}; got n_ssm={n_ssm}")
    return groups


def _as_pair(tensor: Tensor) -> Tensor:
    return tensor if tensor.shape[-1] == 2 else torch.cat([tensor, torch.zeros_like(tensor)], -1)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values[:, None].expand_as(like) if like.ndim == 2 else values
