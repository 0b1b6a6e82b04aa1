"""S4D: a diagonal state space per channel, as a layer."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed import ops, ssm
from milkweed._suggest import unknown
from milkweed.nn.stepping import Stepper
from milkweed.ops import pairs
from milkweed.ssm.discretize import DISCRETIZATIONS


class S4D(nn.Module):
    """Diagonal state space layer: every channel is filtered by its own N-dimensional system, then channels mix.

    ``y = GLU(W gelu(K * u + D u))`` where ``K_l = C Ā^l B̄`` has length L, computed as a long convolution. All
    parameters are real; complex modes are pairs of which one of each conjugate couple is kept, so ``d_state`` counts
    real state dimensions whatever the initialisation.

    Args:
        d_model: H, channels in and out.
        d_state: N, real state size per channel; even unless ``init="real"``.
        init: ``"legs"``, ``"inv"``, ``"lin"``, ``"rand"`` or ``"real"``, see [`milkweed.ssm.diagonal`][].
        discretization: ``"zoh"`` or ``"bilinear"``.
        dt_min: Smallest initial step; 1/dt_min is the longest memory at the start, in steps.
        dt_max: Largest initial step.
        bidirectional: Convolve with a second kernel over the future.
        dropout: Probability, after the activation.
        device: Where parameters live.
        dtype: Their dtype; kernels are computed in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.

    Source:
        S4D (arXiv 2206.11893); B is fixed to 1, which loses no generality as it multiplies C.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: str = "legs",
        *,
        discretization: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model must be at least 1; got {d_model}")
        if discretization not in DISCRETIZATIONS:
            raise ValueError(unknown("discretization", discretization, DISCRETIZATIONS))
        ssm.log_timescale(0, dt_min, dt_max)  # refuses a bad range before anything is allocated
        self.d_model, self.d_state, self.init, self.discretization = d_model, d_state, init, discretization
        self.dt_min, self.dt_max, self.bidirectional = dt_min, dt_max, bidirectional
        modes = len(ssm.diagonal(init, d_state))
        directions = 2 if bidirectional else 1

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = empty(d_model)
        self.log_A_real = empty(d_model, modes)
        self.A_imag = None if init == "real" else empty(d_model, modes)
        self.C = empty(directions, d_model, modes, 1 if init == "real" else 2)
        self.D = empty(d_model)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(d_model, 2 * d_model, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        A = ssm.diagonal(self.init, self.d_state)
        self.log_dt.copy_(ssm.log_timescale(self.d_model, self.dt_min, self.dt_max))
        self.log_A_real.copy_((-A.real if A.is_complex() else -A).log().expand_as(self.log_A_real))
        if self.A_imag is not None:
            self.A_imag.copy_(A.imag.expand_as(self.A_imag))
        # A complex normal has variance 1/2 in each part; a real mode counts twice, see _modes.
        self.C.normal_(std=0.5**0.5)
        self.D.normal_()
        self.output.reset_parameters()

    def parameter_roles(self) -> dict[str, str]:
        """Name the parameters that want their own learning rate and no weight decay.

        Returns:
            Parameter name to ``"ssm"``.
        """
        return {name: "ssm" for name in ("log_dt", "log_A_real", "A_imag") if getattr(self, name) is not None}

    def forward(
        self,
        u: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        rate: float = 1.0,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Filter a batch of sequences.

        Args:
            u: (..., L, d_model), L >= 1.
            state: (..., d_model, N', 2), the state before the first step, from an earlier call; zero by default.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone, and the returned state is the one after its last real step.
            rate: Step length relative to training; 2.0 reads a signal sampled half as often.
            return_state: Also return the state after the last step.

        Returns:
            (..., L, d_model), and with ``return_state`` the state.

        Raises:
            ValueError: A shape does not fit, or a bidirectional layer is given or asked for a state.
        """
        self._check(u, state, lengths, return_state)
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be above 0 and finite; got {rate}")
        lead = u.shape[:-2]
        x = u.reshape(math.prod(lead), *u.shape[-2:])
        start = None if state is None else state.reshape(math.prod(lead), *state.shape[-3:])
        count = None if lengths is None else lengths.reshape(-1).to(u.device, torch.int64)
        if count is not None:
            # Filled, not multiplied: padding may hold NaN.
            x = x.masked_fill((torch.arange(x.shape[1], device=x.device) >= count[:, None])[..., None], 0)
        signal = x.transpose(1, 2)
        exponent, b, c = self._modes(rate)
        kernel = ops.diagonal_ssm_kernel(pairs.multiply(c, b), exponent, x.shape[1])
        y = ops.fft_conv(
            signal, kernel[0], reverse_kernel=kernel[1] if self.bidirectional else None, skip=self.D.to(kernel.dtype)
        )
        if start is not None:
            step = pairs.multiply(pairs.multiply(c[0], pairs.exp(exponent)), start)
            y = y + ops.diagonal_ssm_kernel(step, exponent, x.shape[1]).to(y.dtype)
        out = self._mix(y.transpose(1, 2)).reshape(u.shape)
        if not return_state:
            return out
        final = self._final_state(signal, start, count, exponent, b)
        return out, final.reshape(*lead, *final.shape[1:])

    def stepper(self, rate: float = 1.0) -> Stepper:
        """Give the layer as a recurrence for one step at a time, with the parameters as they are now.

        Args:
            rate: As in ``forward``.

        Returns:
            ``y_t, state = stepper(u_t, state)``, starting from ``stepper.initial_state(batch_size)`` or from the state
            that ``forward`` returned.

        Raises:
            ValueError: The layer is bidirectional: its output depends on the future.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional S4D has no stepper: its output depends on the future; use forward")
        return S4DStepper(self, rate)

    def _check(self, u: Tensor, state: Tensor | None, lengths: Tensor | None, return_state: bool) -> None:
        if u.ndim < 2 or u.shape[-1] != self.d_model:
            raise ValueError(f"u must be (..., L, d_model) with d_model={self.d_model}; got shape {tuple(u.shape)}")
        if u.shape[-2] == 0:
            raise ValueError(f"u must have at least one step; got shape {tuple(u.shape)}")
        if self.bidirectional and (state is not None or return_state):
            raise ValueError("a bidirectional S4D has no state to carry: its output depends on the future")
        expected = (*u.shape[:-2], self.d_model, self.log_A_real.shape[1], 2)
        if state is not None and state.shape != expected:
            raise ValueError(f"state must be {expected} for this u; got {tuple(state.shape)}")
        if lengths is not None:
            check_lengths(lengths, u)

    def _modes(self, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Exponent (H, N', 2) per step, B̄ (H, N', 2) and C (directions, H, N', 2), in float32 at least."""
        dtype = torch.promote_types(self.log_dt.dtype, torch.float32)
        dt = torch.exp(self.log_dt.to(dtype))[:, None] * rate
        re = -torch.exp(self.log_A_real.to(dtype)) * dt
        im = torch.zeros_like(re) if self.A_imag is None else self.A_imag.to(dtype) * dt
        exponent, scale = ssm.discretize_diagonal(torch.stack([re, im], -1), self.discretization)
        c = self.C.to(dtype)
        if self.A_imag is None:
            # Kernels take twice the real part, for a conjugate couple; a real mode is only one.
            c = torch.cat([c / 2**0.5, torch.zeros_like(c)], -1)
        return exponent, scale * dt[..., None], c

    def _final_state(
        self, signal: Tensor, start: Tensor | None, count: Tensor | None, exponent: Tensor, b: Tensor
    ) -> Tensor:
        """x_L = Ā^L x_0 + sum_t Ā^(L-1-t) B̄ u_t, with L each sequence's own length: (B, H, N', 2)."""
        steps: Tensor | int = signal.shape[-1]
        if count is not None:
            # Padding moved to the front, where a zero input leaves a zero state.
            index = torch.arange(signal.shape[-1], device=signal.device) - (signal.shape[-1] - count)[:, None]
            signal = signal.gather(-1, index.clamp_min(0)[:, None].expand_as(signal)) * (index >= 0)[:, None]
            steps = count[:, None, None, None].to(exponent.dtype)
        final = pairs.multiply(ops.diagonal_ssm_state(signal, exponent), b)
        if start is None:
            return final
        return final + pairs.multiply(pairs.exp(exponent * steps), start)

    def _mix(self, y: Tensor) -> Tensor:
        return F.glu(self.output(self.dropout(F.gelu(y))), -1)

    def extra_repr(self) -> str:
        """Describe the layer in one line.

        Returns:
            The options that shape it.
        """
        return (
            f"{self.d_model}, d_state={self.d_state}, init={self.init!r}, discretization={self.discretization!r}, "
            f"bidirectional={self.bidirectional}"
        )


class S4DStepper(Stepper):
    """One S4D layer as a recurrence: O(N) work and memory per channel and step, at any position.

    Args:
        layer: A unidirectional layer; its parameters are discretised once, here.
        rate: As in ``S4D.forward``.
    """

    @torch.no_grad()
    def __init__(self, layer: S4D, rate: float = 1.0) -> None:
        # A copy: training the layer further must not change a stepper that is half new and half old.
        self._layer = copy.deepcopy(layer).eval()
        exponent, self._b, c = self._layer._modes(rate)
        self._a, self._c = pairs.exp(exponent), c[0]

    def initial_state(self, batch_size: int) -> Tensor:
        """Give the state before the first step.

        Args:
            batch_size: B.

        Returns:
            (B, d_model, N', 2) zeros.
        """
        return self._a.new_zeros(batch_size, *self._a.shape)

    @torch.no_grad()
    def __call__(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step, without gradients and dropout.

        Args:
            u: (B, d_model).
            state: (B, d_model, N', 2).

        Returns:
            The output (B, d_model) and the next state.

        Raises:
            ValueError: A shape does not fit.
        """
        if u.ndim != 2 or u.shape[1] != self._layer.d_model or state.shape != (u.shape[0], *self._a.shape):
            raise ValueError(
                f"u must be (B, {self._layer.d_model}) and state (B, {', '.join(map(str, self._a.shape))}); "
                f"got {tuple(u.shape)} and {tuple(state.shape)}"
            )
        state = pairs.multiply(self._a, state) + self._b * u.to(state.dtype)[..., None, None]
        y = 2 * (self._c[..., 0] * state[..., 0] - self._c[..., 1] * state[..., 1]).sum(-1)
        y = y.to(u.dtype) + self._layer.D.to(u.dtype) * u
        return self._layer._mix(y), state


def check_lengths(lengths: Tensor, u: Tensor) -> None:
    """Refuse lengths that do not describe a right-padded batch.

    Args:
        lengths: (...) integers.
        u: (..., L, D).

    Raises:
        ValueError: The shape, the dtype or a value does not fit.
    """
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths must be an integer tensor; got {type(lengths).__name__}; use torch.tensor(lengths)")
    if lengths.shape != u.shape[:-2] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths must be integers of shape {tuple(u.shape[:-2])}, one per sequence; "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if torch.compiler.is_compiling() or lengths.device.type == "meta" or lengths.numel() == 0:
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > u.shape[-2]:
        raise ValueError(f"lengths must be in 1 .. L={u.shape[-2]}; got {low} .. {high}")
