"""M2-GPT: a causal language model of gated long convolutions alone, without attention and without MLPs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed._arguments import check_probability, check_tensor, checked, plain
from milkweed._suggest import unknown
from milkweed.models.base import Model, check_tokens
from milkweed.nn import CausalMonarchMixer, ImplicitFilter, LongConv, ResidualBlock, ShortConv, Stepper
from milkweed.nn.filters.base import check_rate_is_one
from milkweed.nn.lengths import tokens_without_padding
from milkweed.nn.options import layer_options
from milkweed.nn.stepping import StepperStack, check_batch_size, check_state, check_steps


class HeadConv(nn.Module):
    """Causal long convolution of C channels with few kernels: channel c has that of head c modulo ``heads``."""

    def __init__(self, channels: int, length: int, heads: int, options: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        decided = ("d_model", "l_max", "bidirectional")
        self.conv = LongConv(heads, length, **layer_options("mixer_options", options, LongConv, decided))

    def forward(self, u: Tensor, pre_gate: Tensor, post_gate: Tensor) -> Tensor:
        """Convolve u (B, C, L) between two gates of its shape."""
        u, pre_gate, post_gate = (x.unflatten(1, (-1, self.heads)) for x in (u, pre_gate, post_gate))
        return self.conv.convolve(u, pre_gate=pre_gate, post_gate=post_gate).flatten(1, 2)

    def stepper(self) -> HeadConvStepper:
        """The convolution step by step, over (B, C), without gates."""
        return HeadConvStepper(self)


class HeadConvStepper(Stepper):
    """A convolution by heads step by step: the channels of a head are sequences of one batch."""

    def __init__(self, conv: HeadConv) -> None:
        super().__init__()
        self.heads, self.group = conv.heads, conv.channels // conv.heads
        self.inner: Stepper = conv.conv.stepper()

    def initial_state(self, batch_size: int) -> Any:
        """The state before the first step."""
        return self.inner.initial_state(batch_size * self.group)

    def forward(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step with u (B, C)."""
        y, state = self.inner(u.reshape(-1, self.heads), state)
        return y.reshape(u.shape), state

    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take many steps at once with u (B, L, C)."""
        sequences = u.unflatten(2, (self.group, self.heads)).transpose(1, 2).flatten(0, 1)
        y, state = self.inner.read(sequences, state)
        return y.unflatten(0, (-1, self.group)).transpose(1, 2).flatten(2), state


class HeadMonarch(nn.Module):
    """Causal Monarch map with an implicit kernel per channel; the channels of a head share its Monarch matrices."""

    def __init__(self, channels: int, length: int, heads: int, options: Mapping[str, Any] | None) -> None:
        super().__init__()
        further = layer_options("mixer_options", options, CausalMonarchMixer, ("d_model", "seq_len", "heads"))
        decided = ("d_model", "l_max", "bidirectional")
        kernel = layer_options("mixer_options.filter", further.pop("filter", None), ImplicitFilter, decided)
        self.mix = CausalMonarchMixer(
            channels, length, heads=heads, filter=ImplicitFilter(channels, length, **kernel), **further
        )

    def forward(self, u: Tensor, pre_gate: Tensor, post_gate: Tensor) -> Tensor:
        """Mix u (B, C, L) between two gates of its shape."""
        return post_gate * self.mix((pre_gate * u).transpose(1, 2)).transpose(1, 2)

    def stepper(self) -> Stepper:
        """The map step by step, over (B, C), without gates."""
        return self.mix.stepper()


_CONVOLUTIONS: dict[str, type[HeadConv] | type[HeadMonarch]] = {"causal_monarch": HeadMonarch, "long_conv": HeadConv}


class GptMixer(nn.Module):
    """``out(conv(v * x1) * x2)``, where x1, x2, v are short convolutions of projections of the input."""

    def __init__(
        self, d_model: int, length: int, heads: int, expand: int, mixer: str, options: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.in_linear = nn.Linear(d_model, 3 * expand * d_model)
        self.short_conv = ShortConv(3 * expand * d_model)
        self.conv: HeadConv | HeadMonarch = _CONVOLUTIONS[mixer](expand * d_model, length, heads, options)
        self.out_linear = nn.Linear(expand * d_model, d_model)

    def forward(self, u: Tensor) -> Tensor:
        """Mix a batch of sequences (B, L, d_model)."""
        x = self.in_linear(u).transpose(1, 2).contiguous()
        x1, x2, v = self.short_conv(x).chunk(3, 1)
        return self.out_linear(self.conv(v, x1, x2).transpose(1, 2))

    def stepper(self, rate: float = 1.0) -> GptMixerStepper:
        """The mixer step by step, over (B, d_model), with the parameters as they are now."""
        check_rate_is_one(rate, "M2Gpt")
        return GptMixerStepper(self)


class GptMixerState(NamedTuple):
    """Where a mixer is in its sequences."""

    recent: Tensor  # the last two projections, (B, 3 channels, 2); zero before the first step
    conv: Any  # state of the long convolution


class GptMixerStepper(Stepper):
    """A mixer step by step."""

    def __init__(self, mixer: GptMixer) -> None:
        super().__init__()
        self.in_linear = copy.deepcopy(mixer.in_linear).eval().requires_grad_(False)
        self.short_conv = copy.deepcopy(mixer.short_conv).eval().requires_grad_(False)
        self.out_linear = copy.deepcopy(mixer.out_linear).eval().requires_grad_(False)
        self.conv: Stepper = mixer.conv.stepper()

    def initial_state(self, batch_size: int) -> GptMixerState:
        """The state before the first step."""
        check_batch_size(batch_size)
        channels, reach = self.short_conv.weight.shape
        recent = self.short_conv.weight.new_zeros(batch_size, channels, reach - 1)
        return GptMixerState(recent, self.conv.initial_state(batch_size))

    def forward(self, u: Tensor, state: GptMixerState) -> tuple[Tensor, GptMixerState]:
        """Take one step with u (B, d_model), without gradients."""
        check_steps(u, self.in_linear.in_features, dtype=self.in_linear.weight.dtype)
        check_state(state, GptMixerState, lambda own: own.recent, u, self.in_linear.out_features)
        x1, x2, v, recent = self._gates(u[:, None], state.recent)
        y, conv = self.conv((v * x1)[:, 0], state.conv)
        return self.out_linear(y * x2[:, 0]), GptMixerState(recent, conv)

    def read(self, u: Tensor, state: GptMixerState) -> tuple[Tensor, GptMixerState]:
        """Take many steps at once with u (B, L, d_model), e.g. over a prompt."""
        check_steps(u, self.in_linear.in_features, many=True, dtype=self.in_linear.weight.dtype)
        check_state(state, GptMixerState, lambda own: own.recent, u, self.in_linear.out_features)
        x1, x2, v, recent = self._gates(u, state.recent)
        y, conv = self.conv.read(v * x1, state.conv)
        return self.out_linear(y * x2), GptMixerState(recent, conv)

    def _gates(self, u: Tensor, recent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x1, x2 and v of the new steps, (B, L, channels), and the projections that the next ones need."""
        seen = torch.cat([recent, self.in_linear(u).transpose(1, 2)], -1)
        kept = recent.shape[-1]
        x1, x2, v = self.short_conv(seen)[..., kept:].transpose(1, 2).chunk(3, -1)
        # A copy of the two that are still needed, not a view that keeps the whole prompt.
        return x1, x2, v, seen[..., -kept:].clone()


class M2Gpt(Model):
    """Embedding → residual blocks of a causal mixer → norm → head, which is the embedding.

    The defaults are of the smaller published size, the larger one is ``d_model=1024, depth=36``. There are no MLPs; a
    mixer of twice the model's width has as many weights as attention and a narrow MLP together. There are no positions
    either: a convolution knows how long ago something was.

    Args:
        d_input: Number of different tokens.
        d_output: The same.
        length: Longest context, in tokens.
        d_model: Channels.
        depth: Number of blocks.
        heads: Groups of channels in every mixer, which must divide their number. A group shares its kernel, or with
            ``"causal_monarch"`` its Monarch matrices.
        expand: Channels inside a mixer are ``expand * d_model``.
        mixer: ``"long_conv"``, or ``"causal_monarch"`` for a [`milkweed.nn.CausalMonarchMixer`][], which starts as a
            long convolution.
        mixer_options: Further arguments of [`milkweed.nn.LongConv`][], or of [`milkweed.nn.CausalMonarchMixer`][] with
            those of an [`milkweed.nn.ImplicitFilter`][] under ``filter``.
        dropout: Probability, at the end of every branch.
        vocabulary: The characters that the tokens stand for, for those who use the model, as ``model.vocabulary``; not
            needed to run it.

    Raises:
        ValueError: A size is below 1, or does not fit another.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 5.3, M2-GPT of 145M and 360M parameters. Neither code nor weights were
        published. This is a reconstruction from what the paper says: width and depth, gates, no MLP; ``expand`` was
        chosen to come near the published counts.

    Example:
        >>> gpt = mw.models.M2Gpt(96, 96, length=64, d_model=32, depth=1)
        >>> gpt(torch.randint(96, (2, 50))).shape
        torch.Size([2, 50, 96])
    """

    @checked(but=("mixer_options", "dropout"))
    def __init__(
        self,
        d_input: int = 50257,
        d_output: int = 50257,
        length: int = 2048,
        d_model: int = 864,
        depth: int = 18,
        heads: int = 8,
        expand: int = 2,
        mixer: str = "long_conv",
        mixer_options: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        vocabulary: str | None = None,
    ) -> None:
        dropout = plain(dropout)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            length=length,
            d_model=d_model,
            depth=depth,
            heads=heads,
            expand=expand,
            mixer=mixer,
            mixer_options=mixer_options,
            dropout=dropout,
            vocabulary=vocabulary,
        )
        sizes: dict[str, Any] = {"d_input": d_input, "d_output": d_output, "length": length, "d_model": d_model}
        sizes |= {"depth": depth, "heads": heads, "expand": expand}
        check_probability(dropout=dropout)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if d_input != d_output:
            raise ValueError(f"M2-GPT predicts the tokens that it reads: d_output={d_output} must be d_input={d_input}")
        if expand * d_model % heads:
            raise ValueError(
                f"heads must divide expand * d_model; got heads={heads}, expand={expand}, d_model={d_model}"
            )
        if mixer not in _CONVOLUTIONS:
            raise ValueError(unknown("mixer", mixer, _CONVOLUTIONS))
        if vocabulary is not None and not len(vocabulary) == len(set(vocabulary)) == d_input:
            raise ValueError(
                f"vocabulary must have d_input={d_input} different characters; got {len(vocabulary)}, "
                f"{len(set(vocabulary))} of them different"
            )
        self.d_input, self.length, self.vocabulary = d_input, length, vocabulary
        self.encoder = nn.Embedding(d_input, d_model)
        nn.init.normal_(self.encoder.weight, std=0.02)
        self.blocks = nn.ModuleList(
            ResidualBlock(GptMixer(d_model, length, heads, expand, mixer, mixer_options), d_model, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L) tokens, L <= length.
            lengths: (B,) valid steps of right-padded sequences. No step sees the padding after it; with them, padding
                may be anything.

        Returns:
            Logits for the next token at every step, (B, L, d_output).

        Raises:
            ValueError: The inputs are not tokens, or too many.
        """
        inputs = tokens_without_padding(inputs, lengths)
        check_tokens(inputs, self.d_input, "inputs: tokens")
        if inputs.shape[1] > self.length:
            raise ValueError(f"this M2Gpt was built for contexts up to length={self.length}; got {tuple(inputs.shape)}")
        x = self.encoder(inputs)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.encoder.weight)

    def stepper(self, rate: float = 1.0) -> M2GptStepper:
        """Give the network token by token, with the parameters as they are now.

        Args:
            rate: Must be 1; kernels are tied to the steps that they were trained on.

        Returns:
            A stepper over (B,) tokens, up to ``length`` of them; all together cost O(length log² length).

        Raises:
            ValueError: The rate is another.
        """
        return M2GptStepper(self, rate)


class M2GptStepper(Stepper):
    """The whole network token by token."""

    def __init__(self, model: M2Gpt, rate: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.norm = (
            copy.deepcopy(part).eval().requires_grad_(False) for part in (model.encoder, model.norm)
        )
        self.blocks = StepperStack(model.blocks, rate)
        self.d_input = model.d_input

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        """The state before the first token."""
        return self.blocks.initial_state(batch_size)

    @torch.no_grad()
    def forward(self, u: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Take one step with tokens (B,): logits for the next one, (B, d_output), and the next state."""
        check_tensor("u", u)
        if u.ndim != 1:
            raise ValueError(f"u: tokens must be (B,), one step; got shape {tuple(u.shape)}; use read for many steps")
        logits, state = self.read(u[:, None], state)
        return logits[:, 0], state

    @torch.no_grad()
    def read(self, u: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Take many steps at once with tokens (B, L): logits (B, L, d_output) and the state after the last step."""
        check_tokens(u, self.d_input, "u: tokens")
        found, states = self.blocks.outputs(self.encoder(u), state)
        return F.linear(self.norm(found[-1]), self.encoder.weight), states
