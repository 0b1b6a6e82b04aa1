"""Sub-quadratic building blocks for PyTorch: Monarch matrices, long convolutions and state spaces."""

from milkweed import convert, models, nn, ops, ssm, structures
from milkweed._version import __version__
from milkweed.convert import MonarchConfig, convert_, densify_, load_pretrained, plan_conversion, save_pretrained
from milkweed.structures import (
    Monarch,
    factorize_monarch_product,
    monarch_dct,
    monarch_dft,
    monarch_hadamard,
    project_monarch,
)

__all__ = [
    "Monarch",
    "MonarchConfig",
    "__version__",
    "convert",
    "convert_",
    "densify_",
    "factorize_monarch_product",
    "load_pretrained",
    "models",
    "monarch_dct",
    "monarch_dft",
    "monarch_hadamard",
    "nn",
    "ops",
    "plan_conversion",
    "project_monarch",
    "save_pretrained",
    "ssm",
    "structures",
]
