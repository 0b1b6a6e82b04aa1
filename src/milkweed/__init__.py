"""Sub-quadratic building blocks for PyTorch: Monarch matrices, long convolutions and state spaces."""

from milkweed import convert, models, nn, ops, ssm, structures
from milkweed._registry import register
from milkweed._version import __version__
from milkweed.convert import (
    AdapterConfig,
    MonarchConfig,
    add_adapters_,
    convert_,
    convert_folder,
    densify_,
    load_adapters_,
    load_pretrained,
    merge_adapters_,
    plan_conversion,
    remove_adapters_,
    save_adapters,
    save_pretrained,
)
from milkweed.structures import (
    Monarch,
    factorize_monarch_product,
    monarch_dct,
    monarch_dft,
    monarch_hadamard,
    project_monarch,
)

__all__ = [
    "AdapterConfig",
    "Monarch",
    "MonarchConfig",
    "__version__",
    "add_adapters_",
    "convert",
    "convert_",
    "convert_folder",
    "densify_",
    "factorize_monarch_product",
    "load_adapters_",
    "load_pretrained",
    "merge_adapters_",
    "models",
    "monarch_dct",
    "monarch_dft",
    "monarch_hadamard",
    "nn",
    "ops",
    "plan_conversion",
    "project_monarch",
    "register",
    "remove_adapters_",
    "save_adapters",
    "save_pretrained",
    "ssm",
    "structures",
]
