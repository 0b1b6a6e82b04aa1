"""Long convolution with learned kernels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import check_kind, check_tensor, checked
from milkweed._registry import register
from milkweed._suggest import unknown
from milkweed.nn.filters.base import Filter, check_rate_is_one, check_signal_dtype
from milkweed.nn.filters.explicit_filter import ExplicitFilter
from milkweed.nn.filters.implicit_filter import ImplicitFilter
from milkweed.nn.filters.online_conv import ConvRecurrence, ConvState, OnlineConv, state_after
from milkweed.nn.lengths import without_padding

KERNELS = ("explicit", "implicit")


@register("layer", "long_conv")
class LongConv(Filter):
    """``y = post_gate * (K * v + D v)`` with ``v = pre_gate * u``: every channel has a kernel as long as the sequence.

    Args:
        d_model: D, channels.
        l_max: The longest sequence.
        kernel: ``"implicit"``, computed from the lag by an [`milkweed.nn.ImplicitFilter`][], or ``"explicit"``, every
            lag a parameter.
        bidirectional: Convolve with a second kernel over the future, lags -1, -2, ...
        squash: Kernel entries k become sign(k) relu(abs(k) - squash), which leaves only those above it.
        kernel_dropout: Probability that an entry of a kernel is dropped in training.
        filters: ``"uniform"`` or ``"special"``: whether the kernels are trained like everything else, or at rates of
            their own.
        emb_dim: Features of a lag, of an implicit filter.
        width: Of an implicit filter's network.
        freq: Initial frequency of an implicit filter's sines.
        time_scale: Of an implicit filter, ``l_max`` by default.
        device: Where parameters live.
        dtype: Their dtype; kernels are computed in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 4; squash and dropout of kernels from Simple hardware-efficient long
        convolutions (arXiv 2302.06646), section 3.

    Example:
        >>> layer = mw.nn.LongConv(8, l_max=100, kernel="explicit")
        >>> layer(torch.randn(2, 100, 8)).shape
        torch.Size([2, 100, 8])
    """

    @checked
    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        kernel: str = "implicit",
        bidirectional: bool = False,
        squash: float = 0.0,
        kernel_dropout: float = 0.0,
        filters: str = "uniform",
        emb_dim: int = 5,
        width: int = 128,
        freq: float = 10.0,
        time_scale: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(unknown("kernel", kernel, KERNELS))
        if not 0 <= squash < float("inf"):
            raise ValueError(f"squash must be at least 0 and finite; got {squash}")
        if not 0 <= kernel_dropout < 1:
            raise ValueError(f"kernel_dropout must be in 0 <= p < 1; got {kernel_dropout}")
        self.d_model, self.l_max, self.bidirectional = d_model, l_max, bidirectional
        self.squash, self.kernel_dropout = squash, kernel_dropout
        self.filter: ImplicitFilter | ExplicitFilter
        if kernel == "implicit":
            self.filter = ImplicitFilter(
                d_model,
                l_max,
                bidirectional=bidirectional,
                emb_dim=emb_dim,
                width=width,
                freq=freq,
                time_scale=time_scale,
                filters=filters,
                device=device,
                dtype=dtype,
            )
        else:
            self.filter = ExplicitFilter(
                d_model, l_max, bidirectional=bidirectional, filters=filters, device=device, dtype=dtype
            )
        self.skip = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        nn.init.normal_(self.skip)

    @torch.no_grad()
    @override
    def reset_parameters(self) -> None:
        self.filter.reset_parameters()
        self.skip.normal_()

    def forward(
        self,
        u: Tensor,
        state: ConvState | None = None,
        *,
        pre_gate: Tensor | None = None,
        post_gate: Tensor | None = None,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ConvState]:
        """Convolve a batch of sequences.

        Args:
            u: (..., L, d_model), 1 <= L <= l_max.
            state: What came before the first step, from an earlier call; nothing by default. A causal layer only.
            pre_gate: Same shape as ``u``; multiplies the input.
            post_gate: Same shape as ``u``; multiplies the output.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone, and the returned state is the one after its last real step.
            rate: Must be 1: the kernels are tied to the steps that they were trained on.
            return_state: Also return the state after the last step.

        Returns:
            (..., L, d_model) in ``u``'s dtype, and with ``return_state`` the state, for the leading dimensions in one.

        Raises:
            ValueError: A shape does not fit, or a layer that has no state is given or asked for one.
            TypeError: The dtype is not the parameters', and autocast is off.
        """
        x, count = self._prepared(u, lengths)
        check_rate_is_one(rate, "LongConv")
        check_kind(bool, return_state=return_state)
        for name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
            if gate is not None:
                check_tensor(name, gate)
            if gate is not None and gate.shape != u.shape:
                raise ValueError(f"{name} must have u's shape {tuple(u.shape)}; got {tuple(gate.shape)}")
        pre_gate = None if pre_gate is None else without_padding(pre_gate, lengths)
        before, after = (None if gate is None else gate.reshape(x.shape).mT for gate in (pre_gate, post_gate))
        if state is None:
            y = self.convolve(x.mT, pre_gate=before, post_gate=after).mT.reshape(u.shape)
            return (y, self._state_after(self._signal(x.mT, before), count)) if return_state else y
        if count is not None:
            raise ValueError(
                "lengths cannot go with a state, as the sequences of a state are at one position; give lengths "
                "with the first call only, or cut the sequences to one length"
            )
        y, state = ConvRecurrence(self._online_kernel()).extend(self._signal(x.mT, before), state)
        y = (y if after is None else y * after).mT.reshape(u.shape).to(u.dtype)
        return (y, state) if return_state else y

    def _signal(self, u: Tensor, pre_gate: Tensor | None) -> Tensor:
        """What is convolved, (B, d_model, L), in the kernels' precision."""
        u = u.to(torch.promote_types(self.skip.dtype, torch.float32))
        return u if pre_gate is None else u * pre_gate

    def _state_after(self, signal: Tensor, count: Tensor | None) -> ConvState:
        self._check_causal()
        # A copy in any case: a state does not change with the tensor that it comes from. The padding of a batch is
        # moved to the front, where zeros add nothing to any output.
        return state_after(signal.clone() if count is None else signal.gather(-1, _rolled(signal, count)))

    def stepper(self, rate: float = 1.0) -> OnlineConv:
        """Give the layer for one step at a time, with the parameters as they are now.

        Args:
            rate: Must be 1: the kernels are tied to the steps that they were trained on.

        Returns:
            ``y_t, state = stepper(u_t, state)`` on (B, d_model), without gates, starting from
            ``stepper.initial_state(batch_size)`` or from the state that ``forward`` returned. T <= l_max steps cost
            O(T log² T); see [`milkweed.nn.OnlineConv`][].

        Raises:
            ValueError: The layer is bidirectional, or the rate is another.
        """
        check_rate_is_one(rate, "LongConv")
        with torch.no_grad():
            return OnlineConv(copy.deepcopy(self).eval()._online_kernel())

    def _online_kernel(self) -> Tensor:
        """(d_model, l_max), with the skip as part of lag 0."""
        self._check_causal()
        kernel, _ = self.kernels()
        return torch.cat([kernel[:, :1] + self.skip.to(kernel.dtype)[:, None], kernel[:, 1:]], -1)

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError(
                "a bidirectional LongConv has no stepper and no state to carry: its output depends on the future; "
                "call it on whole sequences"
            )

    def convolve(self, u: Tensor, *, pre_gate: Tensor | None = None, post_gate: Tensor | None = None) -> Tensor:
        """Convolve signals with time along the last dimension, for mixers that stay in that layout.

        Args:
            u: (..., d_model, L), 1 <= L <= l_max.
            pre_gate: Same shape; multiplies the input.
            post_gate: Same shape; multiplies the output.

        Returns:
            (..., d_model, L) in ``u``'s dtype.

        Raises:
            ValueError: The shape does not fit.
        """
        check_tensor("u", u)
        if u.ndim < 2 or u.shape[-2] != self.d_model or not 1 <= u.shape[-1] <= self.filter.l_max:
            raise ValueError(
                f"u must be (..., d_model, L) with 1 <= L <= {self.filter.l_max}; got shape {tuple(u.shape)}"
            )
        kernel, reverse = self.kernels(u.shape[-1])
        return ops.fft_conv(
            u,
            kernel,
            reverse_kernel=reverse,
            skip=self.skip.to(kernel.dtype),
            pre_gate=pre_gate,
            post_gate=post_gate,
        )

    def kernels(self, length: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute the kernels as the convolution uses them, squashed and in training with dropout.

        Args:
            length: L, lags from 1 to l_max; all of them by default.

        Returns:
            (d_model, L) for lags 0 .. L - 1, and for a bidirectional layer (d_model, L) for lags -1 .. -L, else None.
        """
        kernel, reverse = self.filter(length)
        return self._regularised(kernel), None if reverse is None else self._regularised(reverse)

    def _regularised(self, kernel: Tensor) -> Tensor:
        if self.squash:
            kernel = F.softshrink(kernel, self.squash)
        return F.dropout(kernel, self.kernel_dropout, self.training)

    def _check(self, u: Tensor, lengths: Tensor | None) -> None:
        super()._check(u, lengths)
        check_signal_dtype(u, self.skip.dtype, kept=False)

    @override
    def extra_repr(self) -> str:
        return f"squash={self.squash:g}, kernel_dropout={self.kernel_dropout:g}"


def _rolled(signal: Tensor, count: Tensor) -> Tensor:
    """Indices into (B, D, L) that bring step ``count`` of each sequence to the front, what was before it to the end."""
    steps = torch.arange(signal.shape[-1], device=signal.device) + count[:, None]
    return (steps % signal.shape[-1])[:, None].expand_as(signal)
