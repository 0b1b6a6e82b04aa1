"""SaShiMi: a multi-scale stack of sequence layers for very long signals, such as raw audio."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.models.base import Model
from milkweed.models.sequence_model import ENCODERS, encode, single_step
from milkweed.nn import Mlp, ResidualBlock, Stepper, build_sequence_layer, check_spec
from milkweed.nn.filters.base import check_rate
from milkweed.nn.stepping import StepperStack, advance, check_batch_size

MakeBlocks = Callable[[int], nn.ModuleList]


class Sashimi(Model):
    """Sequence layers at several rates: the signal is pooled, modelled, and brought back, level by level.

    At every level ``y = up(inner(down(x))) + x`` is followed by blocks around which a skip connection leads; ``up``
    shifts by one pooled step, so that no output sees its future. With ``unet`` there are as many blocks before pooling,
    each with a skip connection to its counterpart. Lengths that the pooling does not divide are padded.

    Args:
        d_input: Different tokens, or features per step with ``encoder="linear"``.
        d_output: Outputs per step.
        d_model: Channels at the full rate.
        depth: Pairs of a sequence layer and a feed-forward layer at every level.
        pool: How many steps become one, from level to level.
        expand: Factor on the channels at every pooling.
        ff: Hidden size of the feed-forward layers over their channels; 0 for none.
        layer: The sequence layer as plain values.
        unet: Blocks before pooling too.
        dropout: Probability, on every layer's output.
        encoder: ``"embedding"`` for tokens, ``"linear"`` for features.

    Raises:
        ValueError: An option is unknown or out of range.

    Source:
        SaShiMi (arXiv 2202.09729), section 4.

    Example:
        >>> model = mw.models.Sashimi(256, 256, d_model=8, depth=1, pool=[2])
        >>> model(torch.randint(256, (2, 64))).shape
        torch.Size([2, 64, 256])
    """

    @checked(but=("layer",))
    def __init__(
        self,
        d_input: int,
        d_output: int,
        d_model: int = 64,
        depth: int = 8,
        pool: Sequence[int] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        layer: Mapping[str, Any] | None = None,
        unet: bool = False,
        dropout: float = 0.0,
        encoder: str = "embedding",
    ) -> None:
        layer = check_spec("layer", {"name": "s4"} if layer is None else layer)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            d_model=d_model,
            depth=depth,
            pool=list(pool),
            expand=expand,
            ff=ff,
            layer=layer,
            unet=unet,
            dropout=dropout,
            encoder=encoder,
        )
        sizes = {"d_input": d_input, "d_output": d_output, "d_model": d_model, "depth": depth, "expand": expand}
        for name, value in sizes.items() | {(f"pool[{i}]", size) for i, size in enumerate(pool)}:
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if ff < 0:
            raise ValueError(f"ff must be at least 0; got {ff}")
        if encoder not in ENCODERS:
            raise ValueError(unknown("encoder", encoder, ENCODERS))
        self.d_input, self.factor = d_input, math.prod(pool)

        def blocks(width: int) -> nn.ModuleList:
            found: list[nn.Module] = []
            for _ in range(depth):
                found.append(ResidualBlock(build_sequence_layer(layer, width), width, dropout=dropout))
                if ff:
                    found.append(ResidualBlock(Mlp(width, ff * width), width, dropout=dropout))
            return nn.ModuleList(found)

        self.encoder = nn.Linear(d_input, d_model) if encoder == "linear" else nn.Embedding(d_input, d_model)
        level: nn.Module = Center(blocks(d_model * expand ** len(pool)))
        for index in reversed(range(len(pool))):
            level = Level(d_model * expand**index, pool[index], expand, level, blocks, unet)
        self.levels = level
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, d_output)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L) tokens, or (B, L, d_input).
            lengths: (B,) valid steps of right-padded sequences. Outputs do not depend on what comes later, so those on
                valid steps are right without them; with them, padding may hold NaN and gradients are right too.
            rate: Step length relative to training, for the layers of all levels: a pooled step is longer by it, too.

        Returns:
            (B, L, d_output).

        Raises:
            ValueError: The rate is not above 0, or a layer has no other than 1.
        """
        check_rate(rate)
        x = encode(self.encoder, inputs, self.d_input, lengths)
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, -length % self.factor))
        return self.head(self.norm(self.levels(x, rate)[:, :length]))

    def stepper(self, rate: float = 1.0) -> SashimiStepper:
        """Give the network as a recurrence, with the parameters as they are now.

        Args:
            rate: Step length relative to training, passed to the layers.

        Returns:
            A stepper over tokens or features; pooled levels run once in so many steps.

        Raises:
            ValueError: A layer is bidirectional.
        """
        return SashimiStepper(self, rate)


class Center(nn.Module):
    """The lowest level: blocks on (B, L, D) with a skip connection around all of them."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """Apply the blocks to x (B, L, D)."""
        y = x
        for block in self.blocks:
            y = block(y, rate=rate)
        return y + x

    def stepper(self, rate: float) -> CenterStepper:
        """The level as a recurrence."""
        return CenterStepper(self, rate)


class Level(nn.Module):
    """One level of pooling with everything below it."""

    def __init__(
        self, d_model: int, pool: int, expand: int, inner: nn.Module, make_blocks: MakeBlocks, unet: bool
    ) -> None:
        super().__init__()
        self.pool = pool
        self.before = make_blocks(d_model) if unet else nn.ModuleList()
        self.down = nn.Linear(pool * d_model, expand * d_model)
        self.inner = inner
        self.up = nn.Linear(expand * d_model, pool * d_model)
        self.after = make_blocks(d_model)

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """Apply the level to x (B, L, d_model), L a multiple of all pooling below."""
        skips = [x]
        for block in self.before:
            skips.append(block(skips[-1], rate=rate))
        # Features of a pooled step in the order (channel, step), as in the original.
        pooled = skips[-1].unflatten(1, (-1, self.pool)).transpose(2, 3).flatten(2)
        raised = self.up(self.inner(self.down(pooled), rate))
        # A pooled step has seen all of its steps, so what it says is for the next ones.
        shifted = F.pad(raised[:, :-1], (0, 0, 1, 0))
        y = shifted.unflatten(2, (-1, self.pool)).transpose(2, 3).flatten(1, 2) + skips.pop()
        around = y
        for block in self.after:
            y = block(y, rate=rate)
            if self.before:
                y = y + skips.pop()
        return y if self.before else y + around

    def stepper(self, rate: float) -> LevelStepper:
        """The level as a recurrence."""
        return LevelStepper(self, rate)


class LevelState(NamedTuple):
    """Where a level is."""

    before: tuple[Any, ...]  # states of the blocks before pooling
    waiting: Tensor  # steps that are not enough for a pooled one yet, (B, less than pool, d_model)
    inner: Any  # state of the level below
    raised: Tensor  # what the last pooled step says for the present ones, (B, pool, d_model)
    after: tuple[Any, ...]  # states of the blocks after pooling


class CenterStepper(nn.Module):
    """The lowest level as a recurrence."""

    def __init__(self, center: Center, rate: float) -> None:
        super().__init__()
        self.blocks = StepperStack(center.blocks, rate)

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        """The blocks' states before the first step."""
        return self.blocks.initial_state(batch_size)

    def read(self, x: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Take some steps with x (B, L, D)."""
        found, states = self.blocks.outputs(x, state)
        return found[-1] + x, states


class LevelStepper(nn.Module):
    """One level of pooling with everything below it, as a recurrence."""

    def __init__(self, level: Level, rate: float) -> None:
        super().__init__()
        self.pool, self.width = level.pool, level.up.out_features // level.pool
        self.down, self.up = (copy.deepcopy(part).eval().requires_grad_(False) for part in (level.down, level.up))
        self.before, self.after = (StepperStack(blocks, rate) for blocks in (level.before, level.after))
        self.inner: Any = level.inner.stepper(rate)  # type: ignore[operator]

    def initial_state(self, batch_size: int) -> LevelState:
        """The state before the first step."""
        zeros = self.up.weight.new_zeros
        return LevelState(
            self.before.initial_state(batch_size),
            zeros(batch_size, 0, self.width),
            self.inner.initial_state(batch_size),
            zeros(batch_size, self.pool, self.width),
            self.after.initial_state(batch_size),
        )

    def read(self, x: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        """Take some steps with x (B, L, D), any number of them."""
        skips, before = self.before.outputs(x, state.before)
        position, length = state.waiting.shape[1], x.shape[1]
        waiting = torch.cat([state.waiting, skips[-1]], 1)
        raised, inner = state.raised, state.inner
        whole = waiting.shape[1] // self.pool
        if whole:
            pooled = waiting[:, : whole * self.pool].unflatten(1, (whole, self.pool)).transpose(2, 3).flatten(2)
            below, inner = self.inner.read(self.down(pooled), inner)
            new = self.up(below).unflatten(2, (-1, self.pool)).transpose(2, 3).flatten(1, 2)
            raised = torch.cat([raised, new], 1)
        y = raised[:, position : position + length] + skips.pop()
        around, after = y, []
        for block, own in zip(self.after, state.after, strict=True):
            y, own = advance(block, y, own)
            after.append(own)
            y = y + skips.pop() if self.before else y
        y = y if self.before else y + around
        waiting = waiting[:, whole * self.pool :]
        return y, LevelState(before, waiting, inner, raised[:, -self.pool :], tuple(after))


class SashimiStepper(Stepper):
    """The whole network as a recurrence."""

    def __init__(self, model: Sashimi, rate: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.norm, self.head = (
            copy.deepcopy(part).eval().requires_grad_(False) for part in (model.encoder, model.norm, model.head)
        )
        self.levels: Any = model.levels.stepper(rate)  # type: ignore[operator]
        self.d_input = model.d_input

    def initial_state(self, batch_size: int) -> Any:
        """The levels' state before the first step."""
        check_batch_size(batch_size)
        return self.levels.initial_state(batch_size)

    def forward(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step with tokens (B,), or u (B, d_input), without gradients and dropout: (B, d_output)."""
        y, state = self.read(single_step(u), state)
        return y[:, 0], state

    @torch.no_grad()
    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take many steps at once with tokens (B, L), or u (B, L, d_input): (B, L, d_output)."""
        if not isinstance(state, LevelState if isinstance(self.levels, LevelStepper) else tuple):
            raise TypeError(f"state must be from initial_state or an earlier step; got {type(state).__name__}")
        x, state = self.levels.read(encode(self.encoder, u, self.d_input, name="u"), state)
        return self.head(self.norm(x)), state
