"""A stack of sequence layers with an encoder, pooling and a head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from milkweed._arguments import check_tensor, checked, refuse_dtype
from milkweed._suggest import unknown
from milkweed.models.base import Model, check_inputs, check_tokens
from milkweed.nn import ResidualBlock, SequenceNorm, Stepper, build_sequence_layer, check_spec
from milkweed.nn.filters.base import check_rate
from milkweed.nn.lengths import check_lengths, mean_of_steps, tokens_without_padding, without_padding
from milkweed.nn.stepping import StepperStack, check_batch_size

ENCODERS = ("embedding", "linear")
POOLINGS = ("last", "mean", "none")


class SequenceModel(Model):
    """Encoder → residual blocks of a sequence layer → pooling → head.

    Args:
        d_input: Features per step, or the number of different tokens with ``encoder="embedding"``.
        d_output: Outputs per sequence, or per step with ``pooling="none"``.
        d_model: Channels inside.
        depth: Number of blocks.
        layer: The sequence layer as plain values, e.g. ``{"name": "s4d", "d_state": 64, "bidirectional": True}`` or
            ``{"name": "long_conv", "l_max": 1024}``. Only ``"s4"`` and ``"s4d"`` take sequences of any length; others
            must be told the longest one.
        norm: ``"layer"`` or ``"batch"``.
        prenorm: Norm before the layer (and once before the head), or after the residual sum.
        dropout: Probability, on every layer's output.
        pooling: ``"mean"`` or ``"last"`` over the valid steps, or ``"none"``.
        encoder: ``"linear"`` for features, ``"embedding"`` for tokens.

    Raises:
        ValueError: An option is unknown or out of range.

    Source:
        The backbone of S4 (arXiv 2111.00396) and S4D (arXiv 2206.11893) experiments.

    Example:
        >>> model = mw.models.SequenceModel(1, 10, d_model=16, depth=2, layer={"name": "s4d", "d_state": 16})
        >>> model(torch.randn(4, 100, 1), lengths=torch.tensor([100, 80, 5, 1])).shape
        torch.Size([4, 10])
    """

    @checked(but=("layer",))
    def __init__(
        self,
        d_input: int,
        d_output: int,
        d_model: int = 128,
        depth: int = 4,
        layer: Mapping[str, Any] | None = None,
        norm: str = "layer",
        prenorm: bool = True,
        dropout: float = 0.0,
        pooling: str = "mean",
        encoder: str = "linear",
    ) -> None:
        layer = check_spec("layer", {"name": "s4d"} if layer is None else layer)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            d_model=d_model,
            depth=depth,
            layer=layer,
            norm=norm,
            prenorm=prenorm,
            dropout=dropout,
            pooling=pooling,
            encoder=encoder,
        )
        for name, value in (("d_input", d_input), ("d_output", d_output), ("d_model", d_model), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if pooling not in POOLINGS:
            raise ValueError(unknown("pooling", pooling, POOLINGS))
        if encoder not in ENCODERS:
            raise ValueError(unknown("encoder", encoder, ENCODERS))
        self.d_input, self.pooling = d_input, pooling
        self.encoder = nn.Linear(d_input, d_model) if encoder == "linear" else nn.Embedding(d_input, d_model)
        self.blocks = nn.ModuleList(
            ResidualBlock(build_sequence_layer(layer, d_model), d_model, norm=norm, prenorm=prenorm, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = SequenceNorm(norm, d_model) if prenorm else nn.Identity()
        self.head = nn.Linear(d_model, d_output)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L, d_input), or (B, L) tokens with ``encoder="embedding"``.
            lengths: (B,) integers, the valid steps of right-padded sequences; all of them by default.
            rate: Step length relative to training, for the layers; 2.0 reads signals sampled half as often.

        Returns:
            (B, d_output), or (B, L, d_output) with ``pooling="none"``.

        Raises:
            ValueError: The rate is not above 0, or a layer has no other than 1.
        """
        check_rate(rate)
        x = encode(self.encoder, inputs, self.d_input, lengths)
        for block in self.blocks:
            x = block(x, lengths=lengths, rate=rate)
        x = self.norm(x, lengths) if isinstance(self.norm, SequenceNorm) else x
        return self.head(pool(x, self.pooling, lengths))

    def stepper(self, rate: float = 1.0) -> SequenceStepper:
        """Give the network as a recurrence, with the parameters as they are now.

        Args:
            rate: Step length relative to training, passed to the layers.

        Returns:
            A stepper whose output after t steps is that of ``forward`` on those t steps (its last one, where nothing is
            pooled). Every step costs the same with state space layers; long convolutions keep the whole past.

        Raises:
            ValueError: A layer is bidirectional, or has no other rate.
            TypeError: A layer is not a recurrence: ``"monarch_mixer"``.
        """
        return SequenceStepper(self, rate)


class SequenceState(NamedTuple):
    """Where a network is in its sequences."""

    layers: tuple[Any, ...]  # the layers' states
    # Sum of the features so far, (B, d_model) in float32 at least, for the mean; None where it is not asked for.
    total: Tensor | None
    steps: Tensor  # how many there were, one integer


class SequenceStepper(Stepper):
    """A sequence model as a recurrence."""

    def __init__(self, model: SequenceModel, rate: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.norm, self.head = (
            copy.deepcopy(part).eval().requires_grad_(False) for part in (model.encoder, model.norm, model.head)
        )
        self.blocks = StepperStack(model.blocks, rate)
        self.d_input, self.pooling = model.d_input, model.pooling

    def initial_state(self, batch_size: int) -> SequenceState:
        """The state before the first step."""
        check_batch_size(batch_size)
        weight = self.head.get_parameter("weight")
        dtype = torch.promote_types(weight.dtype, torch.float32)
        total = weight.new_zeros(batch_size, weight.shape[1], dtype=dtype) if self.pooling == "mean" else None
        steps = torch.zeros((), dtype=torch.int64, device=weight.device)
        return SequenceState(self.blocks.initial_state(batch_size), total, steps)

    def forward(self, u: Tensor, state: SequenceState) -> tuple[Tensor, SequenceState]:
        """Take one step with u (B, d_input), or tokens (B,), without gradients and dropout: (B, d_output)."""
        outputs, state = self.read(single_step(u), state)
        return (outputs[:, 0] if self.pooling == "none" else outputs), state

    @torch.no_grad()
    def read(self, u: Tensor, state: SequenceState) -> tuple[Tensor, SequenceState]:
        """Take many steps at once with u (B, L, d_input), or tokens (B, L); outputs are as those of the model."""
        if not isinstance(state, SequenceState):
            raise TypeError(f"state must be from initial_state or the last step; got {type(state).__name__}")
        found, layers = self.blocks.outputs(encode(self.encoder, u, self.d_input, name="u"), state.layers)
        x = self.norm(found[-1])
        steps = state.steps + x.shape[1]
        total = None if state.total is None else state.total + x.sum(1, dtype=state.total.dtype)
        features = {"none": x, "last": x[:, -1]}.get(self.pooling) if total is None else (total / steps).to(x.dtype)
        return self.head(features), SequenceState(layers, total, steps)


def single_step(u: Tensor) -> Tensor:
    """Make a sequence of one step: (B,) tokens or (B, d_input) to (B, 1) or (B, 1, d_input)."""
    check_tensor("u", u)
    if u.ndim not in {1, 2}:
        raise ValueError(f"u must be (B,) tokens or (B, d_input), one step; got shape {tuple(u.shape)}")
    return u[:, None]


def encode(
    encoder: nn.Module, inputs: Tensor, d_input: int, lengths: Tensor | None = None, name: str = "inputs"
) -> Tensor:
    """Check a batch and bring it to (B, L, d_model). Padding ends here: whatever it holds, nothing depends on it."""
    # Before the encoder, whose weight's gradient would be NaN with the padding.
    if isinstance(encoder, nn.Embedding):
        inputs = tokens_without_padding(inputs, lengths)
        check_tokens(inputs, d_input, f"{name}: tokens")
    else:
        check_inputs(inputs, d_input, name)
        inputs = without_padding(inputs, lengths)
    try:
        encoded: Tensor = encoder(inputs)
    except RuntimeError as error:
        refuse_dtype(error, name, inputs, encoder)
    return encoded


def pool(x: Tensor, kind: str, lengths: Tensor | None = None) -> Tensor:
    """Reduce x (B, L, D) to (B, D), summing in float32 at least; ``x`` itself with ``"none"``."""
    if kind == "none":
        return x
    if kind == "mean":
        return mean_of_steps(x, lengths)
    if lengths is None:
        return x[:, -1]
    check_lengths(lengths, x)
    last = lengths.to(x.device, torch.int64)[:, None, None] - 1
    return x.gather(1, last.expand(-1, 1, x.shape[2])).squeeze(1)
