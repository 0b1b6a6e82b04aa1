"""The mixer of M2-BERT: gates around a long convolution."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from milkweed._arguments import check_dtype, check_tensor, checked
from milkweed._registry import register
from milkweed.nn.filters.base import check_rate_is_one
from milkweed.nn.filters.long_conv import LongConv
from milkweed.nn.filters.online_conv import ConvState
from milkweed.nn.lengths import check_lengths, valid_steps
from milkweed.nn.options import layer_options
from milkweed.nn.stepping import Stepper, check_batch_size, check_state, check_steps
from milkweed.ops._common import autocast_dtype
from milkweed.ops._gemm import dense_linear

_WIDTH = 3


class ShortConv(nn.Module):
    """Depthwise causal convolution of three lags: ``y_t = w_2 x_t + w_1 x_{t-1} + w_0 x_{t-2} + bias``.

    Args:
        channels: C.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: ``channels`` is below 1.
        TypeError: An option is of another type.

    Source:
        A depthwise ``torch.nn.Conv1d`` with padding 2 cut to the input's length, and drawn like one.

    Example:
        >>> conv, x = mw.nn.ShortConv(4), torch.randn(2, 4, 10)
        >>> torch.allclose(conv(x[..., :6]), conv(x)[..., :6], atol=1e-6)  # causal
        True
    """

    @checked
    def __init__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        if channels < 1:
            raise ValueError(f"channels must be at least 1; got {channels}")
        self.weight = nn.Parameter(torch.empty(channels, _WIDTH, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(_WIDTH**-0.5), _WIDTH**-0.5)

    def parameter_roles(self) -> dict[str, str]:
        """Name the weight as not decayed: three numbers per channel, which no matrix product sees."""
        return {"weight": "no_decay"}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (..., C, L).

        Returns:
            (..., C, L) in ``x``'s dtype.

        Raises:
            ValueError: The shape does not fit.
        """
        check_tensor("x", x)
        if x.ndim < 2 or x.shape[-2] != self.weight.shape[0]:
            raise ValueError(f"x must be (..., {self.weight.shape[0]}, L); got shape {tuple(x.shape)}")
        # Products of shifted signals: a depthwise conv1d takes several times as long on a CPU.
        oldest, older, now = self.weight.to(x.dtype)[..., None].unbind(1)
        y = torch.addcmul(self.bias.to(x.dtype)[:, None], x, now)
        if torch.compiler.is_compiling():
            # Views of L - 1 steps would make a case of their own of every short length; the compiler fuses the padding.
            length, padded = x.shape[-1], F.pad(x, (_WIDTH - 1, 0))
            return y + padded[..., 1 : length + 1] * older + padded[..., :length] * oldest
        y[..., 1:].addcmul_(x[..., :-1], older)
        y[..., 2:].addcmul_(x[..., :-2], oldest)
        return y


@register("layer", "gated_mixer")
class GatedMixer(nn.Module):
    """Mix a sequence: ``out(conv(v * x1) * x2 + conv'(u))`` with x1, x2, v short convolutions of projections of u.

    Args:
        d_model: D, channels in and out.
        l_max: Longest sequence.
        bidirectional: Whether the long convolutions see the future; the short one never does.
        residual_long_conv: Whether to add the second long convolution, of the input itself. It stands where other
            networks have a skip connection, as those of M2-BERT have none around the mixer.
        kernel: ``"implicit"`` or ``"explicit"``, see [`milkweed.nn.LongConv`][].
        kernel_options: Further arguments of [`milkweed.nn.LongConv`][], for both convolutions.
        pre_norm: Whether to normalise the input first; the second long convolution then sees it normalised too.
        device: Where parameters live.
        dtype: Their dtype; long convolutions are computed in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 4 and its public M2-BERT.

    Example:
        >>> mixer = mw.nn.GatedMixer(16, l_max=100)
        >>> mixer(torch.randn(2, 80, 16), lengths=torch.tensor([80, 30])).shape
        torch.Size([2, 80, 16])
    """

    @checked(but=("kernel_options",))
    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        bidirectional: bool = False,
        residual_long_conv: bool = True,
        kernel: str = "implicit",
        kernel_options: Mapping[str, Any] | None = None,
        pre_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("l_max", l_max)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {name}={value}")
        check_dtype(dtype)
        further = layer_options("kernel_options", kernel_options, LongConv, ("d_model", "l_max", "bidirectional"))
        self.d_model, self.l_max, self.bidirectional = d_model, l_max, bidirectional
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options = {"kernel": kernel, "bidirectional": bidirectional, **further, **factory}
        self.norm = nn.LayerNorm(d_model, **factory) if pre_norm else None
        self.in_linear = nn.Linear(d_model, 3 * d_model, **factory)
        self.short_conv = ShortConv(3 * d_model, **factory)
        self.long_conv = LongConv(d_model, l_max, **options)
        self.residual_conv = LongConv(d_model, l_max, **options) if residual_long_conv else None
        self.out_linear = nn.Linear(d_model, d_model, **factory)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def forward(self, u: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Mix a batch of sequences.

        Args:
            u: (..., L, d_model), 1 <= L <= l_max.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone. Without it every step counts.

        Returns:
            (..., L, d_model).

        Raises:
            ValueError: A shape or a length does not fit.
            TypeError: The dtype is not the parameters', and autocast is off.
        """
        self._check(u, lengths)
        x = u.reshape(math.prod(u.shape[:-2]), *u.shape[-2:])
        valid = None
        if lengths is not None:
            valid = valid_steps(lengths.reshape(-1).to(u.device), u.shape[-2])[..., None]
            # Filled, not multiplied: padding may hold NaN.
            x = x.masked_fill(~valid, 0)
        if self.norm is not None:
            x = self.norm(x)
        x1, x2, v = self.short_conv(_channels_first(_apply(self.in_linear, x))).chunk(3, 1)
        if valid is not None:
            # Biases have come in: of the padding, neither convolution may see anything.
            x1 = x1.masked_fill(~valid.transpose(1, 2), 0)
            x = x if self.norm is None else x.masked_fill(~valid, 0)
        y = self.long_conv.convolve(v, pre_gate=x1, post_gate=x2)
        if self.residual_conv is not None:
            y += self.residual_conv.convolve(_channels_first(x))
        mixed = _apply(self.out_linear, y.transpose(1, 2))
        return mixed.reshape(u.shape)

    def stepper(self, rate: float = 1.0) -> GatedMixerStepper:
        """Give a causal mixer step by step, with the parameters as they are now.

        Args:
            rate: Must be 1; an implicit kernel is tied to the steps that it was trained on.

        Returns:
            A stepper over (B, d_model).

        Raises:
            ValueError: The mixer is bidirectional, or the rate is another.
        """
        return GatedMixerStepper(self, rate)

    def _check(self, u: Tensor, lengths: Tensor | None) -> None:
        check_tensor("u", u)
        if u.ndim < 2 or u.shape[-1] != self.d_model:
            raise ValueError(f"u must be (..., L, d_model) with d_model={self.d_model}; got shape {tuple(u.shape)}")
        if not 1 <= u.shape[-2] <= self.l_max:
            raise ValueError(
                f"u must have 1 to l_max={self.l_max} steps; got shape {tuple(u.shape)}; build the mixer with a larger "
                "l_max"
            )
        dtype = self.long_conv.skip.dtype
        if u.dtype != dtype and (autocast_dtype(u) is None or torch.float64 in {u.dtype, dtype}):
            raise TypeError(
                f"u must be {dtype} as the layer's parameters are; got {u.dtype}; cast u, or use autocast, which "
                "leaves float64 as it is"
            )
        if not u.is_floating_point():
            raise TypeError(f"u must be real floating point; got {u.dtype}; use u.float()")
        if lengths is not None:
            check_lengths(lengths, u)

    @override
    def extra_repr(self) -> str:
        return f"{self.d_model}, l_max={self.l_max}, bidirectional={self.bidirectional}"


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer; one that is only its weight and bias by the faster product."""
    if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks):
        return dense_linear(x, layer.weight, layer.bias)
    found: Tensor = layer(x)
    return found


def _channels_first(x: Tensor) -> Tensor:
    """(B, L, C) to (B, C, L) with time along the memory; one flat transposition, as strided reads cost far more."""
    batch, length, channels = x.shape
    turned = x.reshape(batch * length, channels).t().contiguous()
    return turned.view(channels, batch, length).transpose(0, 1)


class GatedMixerState(NamedTuple):
    """Where a mixer is in its sequences."""

    recent: Tensor  # The last two projections, (B, 3 d_model, 2); zero before the first step
    long: ConvState  # State of the long convolution
    residual: ConvState | None  # State of the second one, or None


class GatedMixerStepper(Stepper):
    """A causal mixer step by step.

    Args:
        mixer: The mixer.
        rate: Must be 1.

    Raises:
        ValueError: The mixer is bidirectional, or the rate is another.
    """

    def __init__(self, mixer: GatedMixer, rate: float = 1.0) -> None:
        if mixer.bidirectional:
            raise ValueError(
                "a bidirectional GatedMixer has no stepper: its output depends on the future; call it on whole "
                "sequences, or build it with bidirectional=False"
            )
        check_rate_is_one(rate, "GatedMixer")
        super().__init__()
        # A copy: training the mixer further must not change a stepper that is half new and half old.
        self.mixer = copy.deepcopy(mixer).eval().requires_grad_(False)
        self.long = self.mixer.long_conv.stepper()
        self.residual = None if self.mixer.residual_conv is None else self.mixer.residual_conv.stepper()

    def initial_state(self, batch_size: int) -> GatedMixerState:
        """Give the state before the first step, of both convolutions."""
        check_batch_size(batch_size)
        skip = self.mixer.long_conv.skip
        recent = skip.new_zeros(batch_size, 3 * self.mixer.d_model, _WIDTH - 1)
        residual = None if self.residual is None else self.residual.initial_state(batch_size)
        return GatedMixerState(recent, self.long.initial_state(batch_size), residual)

    def forward(self, u: Tensor, state: GatedMixerState) -> tuple[Tensor, GatedMixerState]:
        """Take one step u (B, d_model), without gradients and dropout."""
        self._check(u, state, many=False)
        y, state = self._run(u[:, None], state, one=True)
        return y[:, 0], state

    def read(self, u: Tensor, state: GatedMixerState) -> tuple[Tensor, GatedMixerState]:
        """Take many steps u (B, L, d_model) at once, e.g. over a prompt."""
        self._check(u, state, many=True)
        return self._run(u, state, one=False)

    def _check(self, u: Tensor, state: GatedMixerState, *, many: bool) -> None:
        channels = self.mixer.d_model
        check_steps(u, channels, many=many, dtype=self.mixer.long_conv.skip.dtype)
        check_state(state, GatedMixerState, lambda own: own.recent, u, 3 * channels)

    @torch.no_grad()
    def _run(self, u: Tensor, state: GatedMixerState, *, one: bool) -> tuple[Tensor, GatedMixerState]:
        mixer = self.mixer
        u = u if mixer.norm is None else mixer.norm(u)
        seen = torch.cat([state.recent, _channels_first(_apply(mixer.in_linear, u))], -1)
        x1, x2, v = mixer.short_conv(seen)[..., _WIDTH - 1 :].chunk(3, 1)
        y, long = _advance(self.long, v * x1, state.long, one)
        y, residual = y * x2, None
        if self.residual is not None:
            assert state.residual is not None
            more, residual = _advance(self.residual, _channels_first(u), state.residual, one)
            y = y + more
        # A copy of the two that are still needed, not a view that keeps the whole prompt.
        recent = seen[..., -(_WIDTH - 1) :].clone()
        return _apply(mixer.out_linear, y.transpose(1, 2)), GatedMixerState(recent, long, residual)


def _advance(stepper: Stepper, u: Tensor, state: ConvState, one: bool) -> tuple[Tensor, ConvState]:
    """One step or many; u and the outputs are (B, D, L) either way."""
    if not one:
        y, state = stepper.read(u.mT, state)
        return y.mT, state
    y, state = stepper(u[..., 0], state)
    return y[..., None], state
