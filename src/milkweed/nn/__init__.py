"""Layers on (batch, length, d_model) and structured linear layers."""

from milkweed.nn.blocks import ResidualBlock, SequenceNorm
from milkweed.nn.factory import build_linear, build_sequence_layer, check_spec
from milkweed.nn.learnable_transform import LearnableTransform, LearnableTransform2d
from milkweed.nn.mlp import Mlp
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
    "BlockDiagonalLinear",
    "ButterflyLinear",
    "LearnableTransform",
    "LearnableTransform2d",
    "LowRankLinear",
    "Mlp",
    "MonarchLinear",
    "PixelflyLinear",
    "ResidualBlock",
    "SequenceNorm",
    "StateSpaceLayer",
    "Stepper",
    "StructuredLinear",
    "build_linear",
    "build_sequence_layer",
    "check_spec",
    "parameter_groups",
]
