"""S4ND: state spaces along every axis of an image or a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import check_tensor, checked, plain
from milkweed._suggest import unknown
from milkweed.nn.filters.base import check_rate
from milkweed.nn.filters.s4 import S4Filter
from milkweed.nn.filters.s4d import S4DFilter, check_groups
from milkweed.nn.filters.systems import DenseSystem, DiagonalSystem, SoftmaxSystem
from milkweed.nn.precision import KeepsFloat32, at_least_float32

T = TypeVar("T")

_KINDS: dict[str, Callable[..., S4Filter | S4DFilter]] = {"s4": S4Filter, "s4d": S4DFilter}
# torch has 64 axes at most; the batch and the channels take two.
_MOST_AXES = 62
_AXIS_OPTIONS = {
    "s4": ("decay", "discretization", "n_ssm", "rank"),
    "s4d": ("b_init", "decay", "discretization", "dt_tie", "init_options", "n_ssm"),
}


class S4NDFilter(KeepsFloat32):
    """State space filter of images (``dims=2``) and volumes (``dims=3``): every channel has one system per axis.

    ``y = K * u + D u``, where the kernel of a channel is the outer product of one kernel
    per axis, ``K[i, j] = K1[i] K2[j]``. A convolution with it is one convolution along each axis in turn, which is what
    is computed: no N-dimensional transform, and no kernel larger than an axis. The same parameters serve every size.

    Args:
        d_model: H, channels in and out.
        dims: Number of spatial axes, at least 1.
        d_state: N, real state size per channel and axis.
        init: Basis or spectrum, as in [`milkweed.nn.filters.S4Filter`][] or [`milkweed.nn.filters.S4DFilter`][].
        kind: What the systems of the axes are: ``"s4"`` or ``"s4d"``.
        axis_options: Their further options: ``decay``, ``discretization``, ``n_ssm`` and, for ``"s4"``, ``rank``, for
            ``"s4d"``, ``b_init``, ``dt_tie``, ``init_options``.
        kernel_rank: A kernel is the sum of this many outer products.
        channels: Readouts per channel (heads), each with its own timescales, mixed by the output layer.
        bidirectional: Kernels reach to both sides, as images have no arrow of time; one value, or one per axis.
        bandlimit: Alpha: modes whose frequency |Im A| dt / 2π, in cycles per step, exceeds alpha/2 are masked out of
            C; 1.0 is the Nyquist frequency, smaller is safer. None keeps all. See ``forward`` for other resolutions.
        dt_min: Smallest initial step; 1/dt_min is the longest reach at the start, in steps. One value, or one per axis.
        dt_max: Largest initial step; one value, or one per axis.
        frozen: Parameters that are not trained, on all axes: of ``"A"``, ``"B"``, ``"C"``, ``"D"``, ``"dt"`` and, for
            ``"s4"``, ``"P"``.
        device: Where parameters live.
        dtype: Their dtype; kernels and convolutions are computed in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        S4ND (arXiv 2210.06583), section 3. The public code masks by the frequency at ``rate=1`` only, which lets modes
        alias at coarser resolutions; here whichever of the two resolutions is coarser decides.

    Example:
        >>> mw.nn.filters.S4NDFilter(4, dims=2, d_state=8)(torch.randn(2, 12, 10, 4)).shape
        torch.Size([2, 12, 10, 4])
    """

    @checked(but=("axis_options", "bidirectional", "dt_min", "dt_max"))
    def __init__(
        self,
        d_model: int,
        dims: int = 2,
        d_state: int = 64,
        init: str = "legs",
        *,
        kind: str = "s4",
        axis_options: Mapping[str, Any] | None = None,
        kernel_rank: int = 1,
        channels: int = 1,
        bidirectional: bool | Sequence[bool] = True,
        bandlimit: float | None = None,
        dt_min: float | Sequence[float] = 1e-3,
        dt_max: float | Sequence[float] = 1e-1,
        frozen: Sequence[str] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"d_model": d_model, "dims": dims, "channels": channels, "kernel_rank": kernel_rank}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value}")
        if dims > _MOST_AXES:
            raise ValueError(f"dims must be at most {_MOST_AXES}, since tensors have no more axes; got {dims}")
        if kind not in _KINDS:
            raise ValueError(unknown("kind", kind, _KINDS))
        if not isinstance(axis_options, Mapping | None):
            raise TypeError(f"axis_options must be a mapping, e.g. {{'n_ssm': 1}}, or None; got {axis_options!r}")
        options = dict(axis_options or {})
        for option in options:
            if option not in _AXIS_OPTIONS[kind]:
                raise ValueError(unknown("axis_options", option, _AXIS_OPTIONS[kind]))
        if bandlimit is not None and not 0 < bandlimit < math.inf:
            raise ValueError(f"bandlimit must be above 0 and finite, or None; got {bandlimit}")
        super().__init__()
        self.d_model, self.channels = d_model, channels
        self.dims, self.d_state, self.init, self.kind = dims, d_state, init, kind
        self.kernel_rank, self.bandlimit, self.frozen = kernel_rank, bandlimit, tuple(frozen)
        # Terms and heads share the A and B of their channel unless told otherwise.
        options["n_ssm"] = check_groups(d_model, options.get("n_ssm"))
        settings = zip(
            _per_axis("bidirectional", plain(bidirectional), dims),
            _per_axis("dt_min", plain(dt_min), dims),
            _per_axis("dt_max", plain(dt_max), dims),
            strict=True,
        )
        self.axes = nn.ModuleList(
            _KINDS[kind](
                kernel_rank * channels * d_model,
                d_state,
                init,
                bidirectional=both,
                dt_min=low,
                dt_max=high,
                skip=False,
                frozen=[name for name in frozen if name != "D"],
                device=device,
                dtype=dtype,
                **options,
            )
            for both, low, high in settings
        )
        # The input is added once, not once per axis.
        self.D = nn.Parameter(torch.empty(channels, d_model, device=device, dtype=at_least_float32(dtype)))
        self.D.requires_grad_("D" not in frozen)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        for axis in self._axes():
            axis.reset_parameters()
        # A sum of independent terms is then as large as one of them.
        self._axes()[0].C.mul_(self.kernel_rank**-0.5)
        self.D.normal_()

    def parameter_roles(self) -> dict[str, str]:
        """Name the parameters that are not decayed; the systems of the axes name their own."""
        return {"D": "no_decay"}

    def forward(self, u: Tensor, *, rate: float | Sequence[float] = 1.0) -> Tensor:
        """Filter a batch of images or volumes.

        Args:
            u: (B, *spatial, d_model) with ``dims`` spatial axes, each at least 1 long.
            rate: Distance between neighbours relative to training, one value or one per axis: 0.5 for an image of the
                same scene with twice the points. With ``bandlimit``, modes that training (``rate=1``) did not see stay
                masked at finer resolutions, and those that would alias are masked at coarser ones. Train at several
                resolutions by calling the finest one 1.

        Returns:
            (B, *spatial, channels d_model), in float32 at least.

        Raises:
            ValueError: The shape does not fit, or a rate is not above 0.
        """
        check_tensor("u", u)
        if u.ndim != self.dims + 2 or u.shape[-1] != self.d_model:
            raise ValueError(
                f"u must be (B, {', '.join(f'L{i + 1}' for i in range(self.dims))}, d_model) with "
                f"d_model={self.d_model}, for dims={self.dims}; got shape {tuple(u.shape)}"
            )
        if 0 in u.shape[1:-1]:
            raise ValueError(f"u must have at least one point on every axis; got shape {tuple(u.shape)}")
        rates = _per_axis("rate", rate, self.dims)
        for each in rates:
            check_rate(each)
        return self._convolve(u, rates)

    def _convolve(self, u: Tensor, rates: Sequence[float]) -> Tensor:
        """(B, *spatial, H) to (B, *spatial, channels H), with the skip, in float32 at least."""
        copies = self.kernel_rank * self.channels
        # Wide from here on: half precision would round anew after every axis.
        u = u.to(torch.promote_types(u.dtype, torch.promote_types(self.D.dtype, torch.float32)))
        y = u if copies == 1 else u[..., None, :].expand(*u.shape[:-1], copies, -1).flatten(-2)
        # The last axis first: it needs no copy.
        for position in range(self.dims, 0, -1):
            kernel, reverse = self._kernel(position - 1, u.shape[position], rates[position - 1])
            y = ops.fft_conv(y.movedim(position, -1), kernel, reverse_kernel=reverse).movedim(-1, position)
        y = y.unflatten(-1, (self.kernel_rank, self.channels, self.d_model))
        return (y.sum(-3) + self.D.to(u.dtype) * u[..., None, :]).flatten(-2)

    def _kernel(self, axis: int, length: int, rate: float) -> tuple[Tensor, Tensor | None]:
        """The kernels of one axis, (kernel_rank channels H, length), for lags 0, 1, .. and for lags -1, -2, .."""
        layer = self._axes()[axis]
        system = layer.system(rate)
        if self.bandlimit is not None:
            system = _limit_band(layer, system, self.bandlimit, max(rate, 1.0))
        kernel = system.kernel(length)
        return kernel[0], kernel[1] if layer.bidirectional else None

    def _axes(self) -> list[S4Filter | S4DFilter]:
        return cast("list[S4Filter | S4DFilter]", list(self.axes))

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, dims={self.dims}, kernel_rank={self.kernel_rank}, channels={self.channels}, "
            f"bandlimit={self.bandlimit}"
        )


def _per_axis(name: str, value: T | Sequence[T], dims: int) -> tuple[T, ...]:
    """One value for all axes, or one for each."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return (value,) * dims
    values = tuple(cast("Sequence[T]", value))
    if len(values) != dims:
        raise ValueError(f"{name} must be one value, or one per axis for dims={dims}; got {value!r}")
    return values


def _limit_band(
    layer: S4Filter | S4DFilter, system: DenseSystem | DiagonalSystem | SoftmaxSystem, alpha: float, rate: float
) -> DenseSystem | DiagonalSystem | SoftmaxSystem:
    """Read nothing from modes with more than alpha/2 cycles per step of length ``rate``."""
    if layer.A_imag is None:
        return system
    dtype = system.c.dtype
    log_dt = layer.log_dt if layer.log_dt.ndim == 2 else layer.log_dt[:, None]
    step = torch.exp(log_dt.to(dtype)) * rate
    angle = step * layer.A_imag.to(dtype).abs().repeat(layer.d_model // layer.n_ssm, 1)
    masked = angle > math.pi * alpha
    masked = masked.repeat(1, 2) if isinstance(system, DenseSystem) else masked[..., None]
    return replace(system, c=system.c.masked_fill(masked, 0))
