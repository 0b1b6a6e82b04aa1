"""Sub-quadratic building blocks for PyTorch: Monarch matrices, long convolutions and state spaces.

Nothing heavy is imported before it is used. `import milkweed.ops` registers the operations, as programs need that were
exported by `torch.export` and are loaded without this library's layers.
"""

from typing import TYPE_CHECKING

from milkweed import _integrations
from milkweed._lazy import lazy
from milkweed._version import __version__

if TYPE_CHECKING:
    from milkweed import convert, models, nn, ops, ssm, structures
    from milkweed import data as data
    from milkweed import plots as plots
    from milkweed import tasks as tasks
    from milkweed import train as train
    from milkweed._registry import register
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
    from milkweed.convert import MilkweedConfig as MilkweedConfig
    from milkweed.convert import MonarchAdapterConfig as MonarchAdapterConfig
    from milkweed.structures import (
        Monarch,
        factorize_monarch_product,
        monarch_dct,
        monarch_dft,
        monarch_hadamard,
        project_monarch,
    )
    from milkweed.train.find_predictor import load_predictor as load_predictor
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "_registry": ("register",),
            "convert": (
                "AdapterConfig",
                "MilkweedConfig",
                "MonarchAdapterConfig",
                "MonarchConfig",
                "add_adapters_",
                "convert_",
                "convert_folder",
                "densify_",
                "load_adapters_",
                "load_pretrained",
                "merge_adapters_",
                "plan_conversion",
                "remove_adapters_",
                "save_adapters",
                "save_pretrained",
            ),
            "structures": (
                "Monarch",
                "factorize_monarch_product",
                "monarch_dct",
                "monarch_dft",
                "monarch_hadamard",
                "project_monarch",
            ),
            "train": ("load_predictor",),
            **dict.fromkeys(("data", "models", "nn", "ops", "plots", "ssm", "tasks"), ()),
        },
    )


# Without data, plots, tasks, train, load_predictor and MilkweedConfig, which need extras: a star imports what the base
# install has.
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

_integrations.install()
