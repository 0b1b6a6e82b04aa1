"""The Monarch Mixer layer: Monarch matrices along the sequence and along the features, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import check_dtype, check_tensor, checked
from milkweed._registry import register
from milkweed._suggest import unknown
from milkweed.nn.lengths import without_padding
from milkweed.nn.sequence_layer import ACTIVATIONS
from milkweed.nn.structured_linear import ButterflyLinear
from milkweed.ops import pairs
from milkweed.ops._common import compute_dtype, without_autocast
from milkweed.ops.backends import arranged_for_export
from milkweed.structures import Chain, monarch_hadamard
from milkweed.structures.causal import balanced_digits

SEQUENCE_STARTS = ("dft", "hadamard", "random")
FEATURE_STARTS = ("hadamard", "random")


@register("layer", "monarch_mixer")
class MonarchMixer(nn.Module):
    """``X̃ = M₂(K₁ ⊙ M₁ X)`` along the sequence, then ``norm(M₄ σ(M₃ X̃) + X̃)`` along the features.

    All four M are Monarch matrices of order p, p block-diagonal factors between permutations, which are learned from
    their start. Started at the Fourier transform, M₁ and M₂ make the first line a long convolution, exactly: they have
    at least 2 L - 1 points, so that nothing wraps, and K₁ is the spectrum of a random kernel over the past. Training
    may leave both convolutions and the past. The layer sees all of ``seq_len`` steps, zeros after a shorter sequence.

    Costs O(p L^{1 + 1/p}) per channel and O(p H^{1 + 1/p}) per step.

    Args:
        d_model: H, features in and out.
        seq_len: Longest sequence.
        order: p, factors of every Monarch matrix, at least 2.
        start: Of M₁ and M₂: ``"dft"`` (complex, stored as real pairs) and its inverse, the orthonormal ``"hadamard"``
            transform, or ``"random"`` orthogonal blocks.
        feature_start: Of M₃ and M₄: ``"random"``, or ``"hadamard"``, where M₄ M₃ is the identity; ``d_model`` must be a
            power of two then.
        activation: σ, ``"gelu"``, ``"relu"``, ``"silu"``, ``"tanh"``, ``"sigmoid"`` or ``"none"``.
        device: Where parameters live.
        dtype: Their dtype; the sequence is mixed in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), equations 2 and 3 with the residual and the norm of its listing. That has a
        ReLU between M₁ and M₂ as well, which the equations have not; there is none here.

    Example:
        >>> mw.nn.MonarchMixer(16, seq_len=64)(torch.randn(2, 64, 16)).shape
        torch.Size([2, 64, 16])
    """

    @checked
    def __init__(
        self,
        d_model: int,
        seq_len: int,
        order: int = 2,
        *,
        start: str = "dft",
        feature_start: str = "random",
        activation: str = "gelu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        for name, value, least in (("d_model", d_model, 1), ("seq_len", seq_len, 1), ("order", order, 2)):
            if value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
        choices = (("start", start, SEQUENCE_STARTS), ("feature_start", feature_start, FEATURE_STARTS))
        for name, given, known in (*choices, ("activation", activation, tuple(ACTIVATIONS))):
            if given not in known:
                raise ValueError(unknown(name, given, known))
        if feature_start == "hadamard" and d_model & (d_model - 1):
            nearest = 1 << round(math.log2(d_model))
            raise ValueError(
                f"feature_start='hadamard' needs d_model to be a power of two; got {d_model}; the nearest is {nearest}"
            )
        self.d_model, self.seq_len, self.order = d_model, seq_len, order
        self.start, self.feature_start, self.activation = start, feature_start, activation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        digits = _digits(2 * seq_len - 1 if start == "dft" else seq_len, order, start)
        points = math.prod(digits)
        self.m1: nn.Module
        self.m2: nn.Module
        if start == "dft":
            self.m1, self.m2 = (FourierChain(digits, inverse, **factory) for inverse in (False, True))
            self.kernel = nn.Parameter(torch.empty(d_model, points, 2, **factory))
        else:
            self.m1 = ButterflyLinear(seq_len, points, digits, bias=False, **factory)
            self.m2 = ButterflyLinear(points, seq_len, digits, bias=False, **factory)
            self.kernel = nn.Parameter(torch.empty(d_model, points, **factory))
        digits = _digits(d_model, order, feature_start)
        self.m3, self.m4 = (ButterflyLinear(d_model, d_model, digits, bias=False, **factory) for _ in range(2))
        self.norm = nn.LayerNorm(d_model, **factory)
        self._start_own()

    def reset_parameters(self) -> None:
        """Go back to the start, e.g. after ``to_empty`` moved a meta layer; what is random is drawn anew."""
        for layer in (self.m1, self.m2, self.m3, self.m4, self.norm):
            layer.reset_parameters()  # type: ignore[operator]
        self._start_own()

    @torch.no_grad()
    def _start_own(self) -> None:
        if self.start == "hadamard":
            _start_at_hadamard(self.m1, self.m2)
        if self.feature_start == "hadamard":
            _start_at_hadamard(self.m3, self.m4)
        self.kernel.normal_()
        if self.start == "dft" and not self.kernel.is_meta:
            # The spectrum of a kernel over the past whose outputs have the inputs' variance.
            lags = self.kernel[:, : self.seq_len, 0].double() / self.seq_len**0.5
            self.kernel.copy_(torch.view_as_real(torch.fft.fft(lags, self.kernel.shape[1])))

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Mix along both axes.

        Args:
            x: (..., L, d_model), 1 <= L <= seq_len.
            lengths: (...) integers: how much of each right-padded sequence is real. Outputs there equal those of the
                sequence alone.

        Returns:
            (..., L, d_model) in x's dtype.

        Raises:
            ValueError: A shape does not fit.
            TypeError: x is not real floating point.
        """
        check_tensor("x", x)
        if x.ndim < 2 or x.shape[-1] != self.d_model:
            raise ValueError(f"x must be (..., L, d_model) with d_model={self.d_model}; got shape {tuple(x.shape)}")
        if not 1 <= x.shape[-2] <= self.seq_len:
            raise ValueError(f"x must have 1 to seq_len={self.seq_len} steps; got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be real floating point; got {x.dtype}; use x.float()")
        dtype = x.dtype
        x = without_padding(x, lengths)
        with without_autocast(x):
            mixed = self._mix_sequence(x.mT.to(compute_dtype(x, self.kernel))).mT
        # The features in the parameters' precision, or in autocast's.
        mixed = mixed.to(self.norm.weight.dtype)
        y = self.m4(ACTIVATIONS[self.activation](self.m3(mixed)))
        out: Tensor = self.norm(y + mixed)
        return out.to(dtype)

    def _mix_sequence(self, x: Tensor) -> Tensor:
        """(..., H, L) to (..., H, L): M₂(K₁ ⊙ M₁ x)."""
        length = x.shape[-1]
        x = nn.functional.pad(x, (0, self.seq_len - length))
        if self.start == "dft" and arranged_for_export():  # few other runtimes have complex numbers
            assert isinstance(self.m1, FourierChain)
            assert isinstance(self.m2, FourierChain)
            spectrum = pairs.multiply(self.kernel.to(x.dtype), self.m1.on_pairs(x[..., None]))
            return self.m2.on_pairs(spectrum)[..., 0][..., :length]
        if self.start == "dft":
            spectrum = self.m1(x) * _complex(self.kernel, x)
            return self.m2(spectrum).real[..., :length]
        m1, m2 = self.m1.matrix(), self.m2.matrix()  # type: ignore[operator]
        mixed: Tensor = m2(self.kernel.to(x.dtype) * m1(x))
        return mixed[..., :length]

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, seq_len={self.seq_len}, order={self.order}, start={self.start!r}, "
            f"feature_start={self.feature_start!r}, activation={self.activation!r}"
        )


class FourierChain(nn.Module):
    """A complex Monarch matrix of order p that starts at the orthonormal Fourier transform, exactly.

    With input digits n_1, ..., n_p, the most significant first, sums run over n_1 first, then n_2, ...: what belongs to
    n_s is ω^{n_s k} of b_1 ⋯ b_s points, where k is known as far as its lowest digits k_1, ..., k_s. So stage s is one
    b_s × b_s block for each k_1, ..., k_{s-1}, and the first permutation reverses the order of the digits.

    Args:
        digits: b_1, ..., b_p.
        inverse: Start at the inverse transform.
        device: Where parameters live.
        dtype: Their dtype, real: numbers are stored as pairs.

    Source:
        Cooley and Tukey's factorisation with its twiddle factors in the blocks, in the form (∏ P_i B_i) P_0 of Monarch
        Mixer (arXiv 2310.12109), section 3.
    """

    def __init__(
        self,
        digits: tuple[int, ...],
        inverse: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.digits, self.inverse = digits, inverse
        points = math.prod(digits)
        self.factors = nn.ParameterList(
            torch.empty(points // size, size, size, 2, device=device, dtype=dtype) for size in digits
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Go back to the transform."""
        if self.factors[0].is_meta:
            return
        known = 1
        for size, factor in zip(self.digits, self.factors, strict=True):
            # Reduced as integers: rounding would grow with the number of turns.
            total = known * size
            k = torch.arange(total, device="cpu").view(size, known)
            turns = torch.arange(size, device="cpu") * k[..., None] % total
            angle = turns.permute(1, 0, 2).double() * ((2 if self.inverse else -2) * math.pi / total)
            blocks = torch.stack([angle.cos(), angle.sin()], -1) * size**-0.5
            # Block numbers are the known digits k, most significant last found first, then the n still to come.
            factor.copy_(blocks.repeat_interleave(factor.shape[0] // known, 0))
            known = total

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last dimension, (..., n) real or complex -> (..., N) complex; zeros follow up to N points."""
        points = math.prod(self.digits)
        x = nn.functional.pad(x, (0, points - x.shape[-1]))
        lead, order = x.ndim - 1, len(self.digits)
        reversal = (*range(lead), *range(lead + order - 1, lead - 1, -1))
        x = x.unflatten(-1, self.digits).permute(reversal).flatten(lead)
        return Chain(tuple(_complex(factor, x) for factor in self.factors))(x)

    def on_pairs(self, x: Tensor) -> Tensor:
        """Do the same in real arithmetic: (..., n, 1), real, or (..., n, 2), pairs -> pairs (..., N, 2)."""
        points = math.prod(self.digits)
        x = nn.functional.pad(x, (0, 0, 0, points - x.shape[-2]))
        lead, order = x.ndim - 2, len(self.digits)
        reversal = (*range(lead), *range(lead + order - 1, lead - 1, -1), lead + order)
        x = x.unflatten(-2, self.digits).permute(reversal).flatten(lead, lead + order - 1)
        for factor in self.factors:
            blocks, size = factor.shape[:2]
            re, im = factor.to(compute_dtype(x)).unbind(-1)
            # The real and the imaginary part of each number side by side, going in and coming out.
            columns = [torch.stack(part, 2) for part in ((re, im), (-im, re))[: x.shape[-1]]]
            weight = torch.stack(columns, -1).reshape(blocks, 2 * size, size * x.shape[-1])
            y = ops.block_diagonal_mm(x.flatten(-2), weight)
            x = y.unflatten(-1, (blocks, size, 2)).transpose(-3, -2).flatten(-3, -2)
        return x


def _complex(stored: Tensor, x: Tensor) -> Tensor:
    stored = stored.to(compute_dtype(x))
    # A new tensor, not a view: a checkpoint may place pairs where complex numbers must not stand.
    return torch.complex(stored[..., 0], stored[..., 1])


def _digits(size: int, order: int, start: str) -> tuple[int, ...]:
    """Digits of a chain of at least this size, powers of two for a Hadamard transform."""
    balanced = balanced_digits(size, order)
    if start != "hadamard":
        return balanced
    bits = (size - 1).bit_length()
    return tuple(2 ** (bits // order + (index < bits % order)) for index in range(order))


def _start_at_hadamard(*layers: nn.Module) -> None:
    """Kronecker products of Hadamard matrices are one: all blocks of a factor are the same."""
    for layer in layers:
        for factor in layer.factors:  # type: ignore[union-attr]
            size = factor.shape[-1]
            if not factor.is_meta:
                factor.copy_(monarch_hadamard(size, norm="ortho", dtype=torch.float64).to_dense())
