"""Conversion of whole models between dense and structured layers, and of checkpoints between formats."""

from typing import TYPE_CHECKING

from milkweed._lazy import lazy
from milkweed.convert import checkpoints
from milkweed.convert.adapter_files import load_adapters_, save_adapters
from milkweed.convert.adapters import AdapterConfig, add_adapters_, remove_adapters_
from milkweed.convert.apply import convert_, densify_
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.evaluation.held_out import HeldOut
from milkweed.convert.evaluation.results import EndToEnd, Figure
from milkweed.convert.hub.folder import convert_folder
from milkweed.convert.hub.folder_conversion import FolderConversion, Size
from milkweed.convert.layer_report import KeptMatrix, LayerReport
from milkweed.convert.merging import MergedAdapters, merge_adapters_
from milkweed.convert.onnx.export import export_onnx
from milkweed.convert.onnx.result import OnnxExport, OnnxFile
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.pretrained import load_pretrained, save_pretrained
from milkweed.convert.rules import default_rules
from milkweed.nn.structured_linear import BlockDiagonalConfig, LayerConfig, LowRankConfig, MonarchConfig, PixelflyConfig

if TYPE_CHECKING:
    from milkweed.convert.hub.native import MilkweedConfig as MilkweedConfig
    from milkweed.convert.peft import MonarchAdapterConfig as MonarchAdapterConfig
else:
    __getattr__, __dir__ = lazy(__name__, {"hub.native": ("MilkweedConfig",), "peft": ("MonarchAdapterConfig",)})

# Without MilkweedConfig and MonarchAdapterConfig, which need an extra.
__all__ = [
    "AdapterConfig",
    "BlockDiagonalConfig",
    "ConversionPlan",
    "ConversionReport",
    "EndToEnd",
    "Figure",
    "FolderConversion",
    "HeldOut",
    "KeptMatrix",
    "LayerConfig",
    "LayerReport",
    "LowRankConfig",
    "MergedAdapters",
    "MonarchConfig",
    "OnnxExport",
    "OnnxFile",
    "PixelflyConfig",
    "Size",
    "add_adapters_",
    "checkpoints",
    "convert_",
    "convert_folder",
    "default_rules",
    "densify_",
    "export_onnx",
    "load_adapters_",
    "load_pretrained",
    "merge_adapters_",
    "plan_conversion",
    "remove_adapters_",
    "save_adapters",
    "save_pretrained",
]
