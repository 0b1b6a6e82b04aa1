"""Layers on (batch, length, d_model) and structured linear layers."""

from milkweed.nn import filters, structured_linear
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
from milkweed.nn.fixed_states import fixed_states
from milkweed.nn.gated_mixer import GatedMixer, ShortConv
from milkweed.nn.gated_mixer_block import GatedMixerBlock
from milkweed.nn.learnable_transform import LearnableTransform, LearnableTransform2d
from milkweed.nn.mlp import Mlp
from milkweed.nn.monarch_mixer import MonarchMixer
from milkweed.nn.parameter_groups import parameter_groups
from milkweed.nn.s4_layers import S4, S4D, S4ND
from milkweed.nn.sequence_layer import SequenceLayer
from milkweed.nn.stepping import Stepper
from milkweed.nn.structured_linear import *  # noqa: F403 - each is listed there, and nowhere else

__all__ = [
    "S4",
    "S4D",
    "S4ND",
    "BlockDiagonalGlu",
    "CausalMonarchMixer",
    "ConvState",
    "ExplicitFilter",
    "GatedMixer",
    "GatedMixerBlock",
    "ImplicitFilter",
    "LearnableTransform",
    "LearnableTransform2d",
    "LongConv",
    "Mlp",
    "MonarchMixer",
    "OnlineConv",
    "ResidualBlock",
    "SequenceLayer",
    "SequenceNorm",
    "ShortConv",
    "Stepper",
    "build_linear",
    "build_sequence_layer",
    "check_spec",
    "filters",
    "fixed_states",
    "parameter_groups",
]
__all__ += structured_linear.__all__
