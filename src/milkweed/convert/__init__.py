"""Conversion of whole models between dense and structured layers, and of checkpoints between formats."""

from milkweed.convert import checkpoints
from milkweed.convert.apply import convert_, densify_
from milkweed.convert.configs import BlockDiagonalConfig, LayerConfig, LowRankConfig, MonarchConfig, PixelflyConfig
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.pretrained import load_pretrained, save_pretrained
from milkweed.convert.report import ConversionReport, LayerReport
from milkweed.convert.rules import default_rules

__all__ = [
    "BlockDiagonalConfig",
    "ConversionPlan",
    "ConversionReport",
    "LayerConfig",
    "LayerReport",
    "LowRankConfig",
    "MonarchConfig",
    "PixelflyConfig",
    "checkpoints",
    "convert_",
    "default_rules",
    "densify_",
    "load_pretrained",
    "plan_conversion",
    "save_pretrained",
]
