"""Layers on (batch, length, d_model) and structured linear layers."""

from milkweed.nn.block_diagonal_glu import BlockDiagonalGlu
from milkweed.nn.blocks import ResidualBlock, SequenceNorm
from milkweed.nn.causal_mixer import CausalMonarchMixer
from milkweed.nn.explicit_filter import ExplicitFilter
from milkweed.nn.factory import build_linear, build_sequence_layer, check_spec
from milkweed.nn.filter_layer import FilterLayer
from milkweed.nn.gated_mixer import GatedMixer, ShortConv
from milkweed.nn.gated_mixer_block import GatedMixerBlock
from milkweed.nn.implicit_filter import ImplicitFilter
from milkweed.nn.learnable_transform import LearnableTransform, LearnableTransform2d
from milkweed.nn.long_conv import LongConv
from milkweed.nn.mlp import Mlp
from milkweed.nn.monarch_mixer import MonarchMixer
from milkweed.nn.online_conv import ConvState, OnlineConv
from milkweed.nn.parameter_groups import parameter_groups
from milkweed.nn.s4 import S4
from milkweed.nn.s4d import S4D
from milkweed.nn.s4nd import S4ND
from milkweed.nn.state_space import StateSpaceLayer
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
    "FilterLayer",
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
    "SequenceNorm",
    "ShortConv",
    "StateSpaceLayer",
    "Stepper",
    "StructuredLinear",
    "build_linear",
    "build_sequence_layer",
    "check_spec",
    "parameter_groups",
]
