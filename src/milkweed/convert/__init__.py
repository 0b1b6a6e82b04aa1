"""Conversion of whole models between dense and structured layers, and of checkpoints between formats."""

from typing import TYPE_CHECKING, Any

from milkweed.convert import checkpoints
from milkweed.convert.adapter_files import load_adapters_, save_adapters
from milkweed.convert.adapters import AdapterConfig, add_adapters_, remove_adapters_
from milkweed.convert.apply import convert_, densify_
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.hub.folder import FolderConversion, convert_folder
from milkweed.convert.layer_report import KeptMatrix, LayerReport
from milkweed.convert.merging import MergedAdapters, merge_adapters_
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.pretrained import load_pretrained, save_pretrained
from milkweed.convert.rules import default_rules
from milkweed.nn.structured_linear import BlockDiagonalConfig, LayerConfig, LowRankConfig, MonarchConfig, PixelflyConfig

if TYPE_CHECKING:
    from milkweed.convert.hub.native import MilkweedConfig as MilkweedConfig
    from milkweed.convert.peft import MonarchAdapterConfig as MonarchAdapterConfig

__all__ = [
    "AdapterConfig",
    "BlockDiagonalConfig",
    "ConversionPlan",
    "ConversionReport",
    "FolderConversion",
    "KeptMatrix",
    "LayerConfig",
    "LayerReport",
    "LowRankConfig",
    "MergedAdapters",
    "MonarchConfig",
    "PixelflyConfig",
    "add_adapters_",
    "checkpoints",
    "convert_",
    "convert_folder",
    "default_rules",
    "densify_",
    "load_adapters_",
    "load_pretrained",
    "merge_adapters_",
    "plan_conversion",
    "remove_adapters_",
    "save_adapters",
    "save_pretrained",
]

# Classes derived from another library's, which is imported with them.
_DERIVED = {"MilkweedConfig": "milkweed.convert.hub.native", "MonarchAdapterConfig": "milkweed.convert.peft"}


def __getattr__(name: str) -> Any:
    if name not in _DERIVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    import importlib

    try:
        return getattr(importlib.import_module(_DERIVED[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "milkweed":
            raise
        raise ModuleNotFoundError(
            f"milkweed.{name} needs {error.name}, which is not installed: pip install 'milkweed[hf]'", name=error.name
        ) from error
