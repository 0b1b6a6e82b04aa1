"""Layers on (batch, length, d_model) and structured linear layers."""

from milkweed.nn import filters
from milkweed.nn.block_diagonal_glu import BlockDiagonalGlu
from milkweed.nn.blocks import ResidualBlock, SequenceNorm
from milkweed.nn.factory import build_linear, build_sequence_layer, check_spec
from milkweed.nn.filters import (
    CausalMonarchMixer,
    ConvState,
    ExplicitFilter,
    ImplicitFilter,
    LongConv,
    OnlineConv,
)
from milkweed.nn.gated_mixer import GatedMixer, ShortConv
from milkweed.nn.gated_mixer_block import GatedMixerBlock
from milkweed.nn.learnable_transform import LearnableTransform, LearnableTransform2d
from milkweed.nn.mlp import Mlp
from milkweed.nn.monarch_mixer import MonarchMixer
from milkweed.nn.parameter_groups import parameter_groups
from milkweed.nn.s4_layers import S4, S4D, S4ND
from milkweed.nn.sequence_layer import SequenceLayer
from milkweed.nn.stepping import Stepper
from milkweed.nn.structured_linear import (
    AdaptedLinear,
    BlockDiagonalLinear,
    ButterflyLinear,
    LowRankLinear,
    MonarchLinear,
    PixelflyLinear,
    StructuredLinear,
)

__all__ = [
    "S4",
    "S4D",
    "S4ND",
    "AdaptedLinear",
    "BlockDiagonalGlu",
    "BlockDiagonalLinear",
    "ButterflyLinear",
    "CausalMonarchMixer",
    "ConvState",
    "ExplicitFilter",
    "GatedMixer",
    "GatedMixerBlock",
    "ImplicitFilter",
    "LearnableTransform",
    "LearnableTransform2d",
    "LongConv",
    "LowRankLinear",
    "Mlp",
    "MonarchLinear",
    "MonarchMixer",
    "OnlineConv",
    "PixelflyLinear",
    "ResidualBlock",
    "SequenceLayer",
    "SequenceNorm",
    "ShortConv",
    "Stepper",
    "StructuredLinear",
    "build_linear",
    "build_sequence_layer",
    "check_spec",
    "filters",
    "parameter_groups",
]
