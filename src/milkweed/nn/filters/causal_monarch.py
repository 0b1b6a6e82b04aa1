"""Causal Monarch mixing of a sequence: a long convolution in a basis that is learned."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from milkweed._arguments import check_dtype, check_kind, checked
from milkweed._registry import register
from milkweed._suggest import unknown
from milkweed.nn.filters.base import Filter, check_rate_is_one
from milkweed.nn.filters.implicit_filter import ImplicitFilter, check_lags
from milkweed.nn.options import layer_options
from milkweed.nn.stepping import Stepper, check_batch_size, check_state, check_steps
from milkweed.ops._common import is_known
from milkweed.structures.causal import (
    BivariateBasis,
    CausalBasis,
    CausalStream,
    ChebyshevBasis,
    KroneckerBasis,
    ProductState,
    balanced_digits,
    causal_product,
    triangular,
)

CONSTRUCTIONS: dict[str, type[CausalBasis]] = {
    "bivariate": BivariateBasis,
    "chebyshev": ChebyshevBasis,
    "kronecker": KroneckerBasis,
}


@register("layer", "causal_monarch")
class CausalMonarchMixer(Filter):
    """``y = M₀⁻¹(M₁ k ⊙ M₂ u) + D u``, where Monarch matrices M evaluate polynomials and no output sees the future.

    The bases of M₀, M₁ and M₂ are learned per head, the kernel k per channel. All factors start at identities: M is
    then a Fourier transform, and the layer a long convolution (``"kronecker"``), one without carry between the digits
    of time (``"bivariate"``), or a product of Chebyshev series (``"chebyshev"``). Weight decay pulls back there. The
    cost is O(p L^{1 + 1/p}) per channel; lengths up to ``seq_len`` cost as their own length. Compiled or exported with
    a dynamic length, all cost as ``seq_len``: the blocks' sizes would follow from a length that is not known.

    Args:
        d_model: H, channels in and out.
        seq_len: Longest sequence.
        construction: ``"kronecker"``, ``"bivariate"`` or ``"chebyshev"``, see [`milkweed.structures.causal`][].
        order: p, digits of time, at least 2; blocks have size L^{1/p}.
        heads: Groups of neighbouring channels that share the Monarch factors; divides ``d_model``.
        filter: A module that gives k, ``filter(length) -> (kernel (d_model, length), None)``; or a mapping of further
            arguments for an [`milkweed.nn.ImplicitFilter`][]. By default k is a parameter, (d_model, seq_len).
        device: Where parameters live.
        dtype: Their dtype; the layer computes in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 4 and its appendix on causality; that M₀, M₁ and M₂ are learned apart,
        and the skip D as in long convolutions, are choices of this library.

    Example:
        >>> mixer, u = mw.nn.CausalMonarchMixer(8, seq_len=30), torch.randn(2, 30, 8)
        >>> y = mixer(u)
        >>> torch.allclose(mixer(u[:, :20]), y[:, :20], atol=1e-4)  # nothing before step 20 sees what follows
        True
    """

    length_option = "seq_len"

    @checked(but=("filter",))
    def __init__(
        self,
        d_model: int,
        seq_len: int,
        construction: str = "kronecker",
        *,
        order: int = 2,
        heads: int = 1,
        filter: nn.Module | Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(d_model, seq_len, construction, order, heads, filter)
        check_dtype(dtype)
        self.d_model, self.seq_len, self.l_max = d_model, seq_len, seq_len
        self.construction, self.order, self.heads = construction, order, heads
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        basis = CONSTRUCTIONS[construction]
        digits = balanced_digits(seq_len + basis.lead, order)

        def factors(sizes: tuple[int, ...]) -> nn.ParameterList:
            shapes = ((heads, *sizes[:a], size, size) for a, size in enumerate(sizes))
            return nn.ParameterList(torch.empty(shape, **factory) for shape in shapes)

        if isinstance(filter, Mapping):
            decided = ("d_model", "l_max", "bidirectional")
            further = layer_options("filter", filter, ImplicitFilter, decided)
            filter = ImplicitFilter(d_model, seq_len, **further, **factory)
        self.output_factors = factors(basis.output_digits(digits))
        self.kernel_factors, self.input_factors = factors(digits), factors(digits)
        self.filter = filter
        self.kernel = nn.Parameter(torch.empty(d_model, seq_len, **factory)) if filter is None else None
        self.D = nn.Parameter(torch.empty(d_model, **factory))
        self._reset_own()

    @override
    def reset_parameters(self) -> None:
        self._reset_own()
        if self.filter is not None:
            self.filter.reset_parameters()  # type: ignore[operator]

    @torch.no_grad()
    def _reset_own(self) -> None:
        for factor in (*self.output_factors, *self.kernel_factors, *self.input_factors):
            factor.zero_()
        if self.kernel is not None:
            self.kernel.normal_(std=0.002)
        self.D.normal_()

    def bases(self) -> dict[str, CausalBasis]:
        """The bases as they are now; gradients flow through them.

        Returns:
            ``output_basis``, ``kernel_basis`` and ``input_basis`` as [`milkweed.structures.causal_product`][]
            takes them.
        """
        kind = CONSTRUCTIONS[self.construction]
        output, kernel, inputs = (
            tuple(triangular(free) for free in factors)
            for factors in (self.output_factors, self.kernel_factors, self.input_factors)
        )
        return {"output_basis": kind.for_output(output), "kernel_basis": kind(kernel), "input_basis": kind(inputs)}

    def forward(
        self,
        u: Tensor,
        state: ProductState | None = None,
        *,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ProductState]:
        """Mix the steps of a batch of sequences.

        Args:
            u: (..., L, d_model), 1 <= L <= seq_len.
            state: What came before the first step, from an earlier call; nothing by default.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone. They cannot go with states, as all sequences of a state are at one position.
            rate: Must be 1: the layer knows no time but steps.
            return_state: Also return the state after the last step.

        Returns:
            (..., L, d_model) in u's dtype, and with ``return_state`` the state, for the leading dimensions in one.

        Raises:
            ValueError: A shape does not fit, or the filter gives another kernel.
            TypeError: u is not real floating point.
        """
        x, count = self._prepared(u, lengths)
        check_rate_is_one(rate, "CausalMonarchMixer")
        check_kind(bool, return_state=return_state)
        length = u.shape[-2]
        if state is not None or return_state:
            if count is not None:
                raise ValueError(
                    "lengths cannot go with a state, as the sequences of a state are at one position; cut the "
                    "sequences to one length"
                )
            y, state = self._go_on(self.stream(), x, state)
            return (y.reshape(u.shape), state) if return_state else y.reshape(u.shape)
        if is_known(length):
            return self._mixed(x).reshape(u.shape)
        y = self._mixed(F.pad(x, (0, 0, 0, self.seq_len - length)))
        # Selected, not cut: a view makes a case of its own of the full length.
        return y.index_select(-2, torch.arange(length, device=y.device)).reshape(u.shape)

    def _mixed(self, x: Tensor) -> Tensor:
        y = causal_product(self.lags(x.shape[-2]), x.transpose(1, 2), **self.bases()).transpose(1, 2)
        return y + self.D.to(y.dtype) * x

    def stream(self) -> CausalStream:
        """The layer as a recurrence over (B, d_model) without the skip, in float32 at least, with gradients."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        return CausalStream(self.lags(self.seq_len).to(dtype), **self.bases())

    def _go_on(self, stream: CausalStream, u: Tensor, state: ProductState | None) -> tuple[Tensor, ProductState]:
        """Take many steps at once, as fast as ``forward`` over everything so far: the past is read again.

        Args:
            stream: From ``stream``.
            u: (B, L, d_model).
            state: Where the sequences are; None for their start.

        Returns:
            The outputs (B, L, d_model) in u's dtype and the state after the last step.

        Raises:
            ValueError: The state is of other sequences, or there is no room for so many steps.
            TypeError: It is no state.
        """
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        new = u.to(dtype).transpose(1, 2)
        if state is not None:
            self._check_room(u, state, u.shape[1])
            new = torch.cat([state.inputs.done, state.inputs.row, new], -1)
        y, state = stream.state_after(new)
        y = y[..., y.shape[-1] - u.shape[1] :].transpose(1, 2)
        return (y + self.D.to(dtype) * u).to(u.dtype), state

    def _check_room(self, u: Tensor, state: ProductState, steps: int) -> None:
        """Refuse a state of other sequences than those of u (B, ...), and so many further steps beyond ``seq_len``."""
        check_state(state, ProductState, lambda own: own.inputs.row, u, self.d_model)
        taken = state.inputs.done.shape[-1] + state.inputs.row.shape[-1]
        if taken + steps > self.seq_len:
            raise ValueError(
                f"a CausalMonarchMixer of seq_len={self.seq_len} has taken {taken} steps and cannot take "
                f"{steps} more; build it with a larger seq_len"
            )

    def lags(self, length: int) -> Tensor:
        """The kernel k.

        Args:
            length: L.

        Returns:
            (d_model, L).

        Raises:
            ValueError: The filter gives another shape, or a kernel over the future.
        """
        if self.filter is None:
            assert self.kernel is not None
            check_lags(length, self.seq_len)
            return self.kernel[:, :length]
        kernel, reverse = self.filter(length)
        if reverse is not None:
            raise ValueError("filter must be causal: it gave a reverse kernel; build it with bidirectional=False")
        if kernel.shape != (self.d_model, length):
            raise ValueError(
                f"filter must give a kernel (d_model, length) = {(self.d_model, length)}; got {tuple(kernel.shape)}"
            )
        found: Tensor = kernel
        return found

    def stepper(self, rate: float = 1.0) -> Stepper:
        """Give the layer as a recurrence for one step at a time, with the parameters as they are now.

        Args:
            rate: Must be 1: the layer knows no time but steps.

        Returns:
            ``y_t, state = stepper(u_t, state)``, starting from ``stepper.initial_state(batch_size)``.

        Raises:
            ValueError: The rate is another.
        """
        check_rate_is_one(rate, "CausalMonarchMixer")
        with torch.no_grad():
            return CausalMixerStepper(copy.deepcopy(self).eval())

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, seq_len={self.seq_len}, construction={self.construction!r}, order={self.order}, "
            f"heads={self.heads}"
        )


class CausalMixerStepper(Stepper):
    """A causal mixer one step at a time, exactly.

    A step costs O(√L log L) on average for order 2: L^{1 - 1/p} log L within the row of steps it stands in, and at
    each row's start one product over the whole past. The past itself is kept, 3 numbers per channel and step; it has
    no smaller state.
    """

    def __init__(self, mixer: CausalMonarchMixer) -> None:
        super().__init__()
        self.mixer = mixer.requires_grad_(False)
        self._stream: CausalStream | None = None
        self.register_load_state_dict_post_hook(_forget_stream)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._stream = None
        return super()._apply(fn, recurse)

    @property
    def stream(self) -> CausalStream:
        """The mixer as a recurrence, made once."""
        if self._stream is None:
            with torch.no_grad():
                self._stream = self.mixer.stream()
        return self._stream

    @torch.no_grad()
    def initial_state(self, batch_size: int) -> ProductState:
        """Give the state before the first step; its tensors grow."""
        check_batch_size(batch_size)
        dtype = torch.promote_types(self.mixer.D.dtype, torch.float32)
        nothing = self.mixer.D.new_zeros(batch_size, self.mixer.d_model, 0, dtype=dtype)
        return self.stream.state_after(nothing)[1]

    @torch.no_grad()
    def forward(self, u: Tensor, state: ProductState) -> tuple[Tensor, ProductState]:
        """Take one step u (B, d_model), without gradients; there are ``seq_len`` at most."""
        check_steps(u, self.mixer.d_model)
        self.mixer._check_room(u, state, 1)
        dtype = state.inputs.row.dtype
        y, state = self.stream.step(u.to(dtype), state)
        return (y + self.mixer.D.to(dtype) * u).to(u.dtype), state

    @torch.no_grad()
    def read(self, u: Tensor, state: ProductState) -> tuple[Tensor, ProductState]:
        """Take many steps at once, as fast as the mixer over everything so far: the past is read again."""
        check_steps(u, self.mixer.d_model, many=True)
        if state is None:
            raise TypeError("state must be from initial_state or an earlier step; got None")
        return self.mixer._go_on(self.stream, u, state)


def _forget_stream(stepper: nn.Module, _: object) -> None:
    assert isinstance(stepper, CausalMixerStepper)
    stepper._stream = None


def _check_options(d_model: int, seq_len: int, construction: str, order: int, heads: int, filter: object) -> None:
    for name, value, least in (("d_model", d_model, 1), ("seq_len", seq_len, 1), ("order", order, 2)):
        if value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    if construction not in CONSTRUCTIONS:
        raise ValueError(unknown("construction", construction, CONSTRUCTIONS))
    if heads < 1 or d_model % heads:
        raise ValueError(f"heads must divide d_model={d_model}; got heads={heads}")
    if not isinstance(filter, nn.Module | Mapping | None):
        raise TypeError(
            "filter must be a module, a mapping of ImplicitFilter's arguments, or None for a kernel per channel; "
            f"got {type(filter).__name__}"
        )
