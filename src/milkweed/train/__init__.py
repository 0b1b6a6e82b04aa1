"""Training: one LightningModule, its optimisation, callbacks, checkpoints and the run folder."""

from typing import TYPE_CHECKING

from milkweed._lazy import lazy

if TYPE_CHECKING:
    from milkweed.train.comparison import Comparison, compare
    from milkweed.train.comparison_files import save_comparison
    from milkweed.train.densify import Densify, DensifyOptions
    from milkweed.train.distill import distill_
    from milkweed.train.module import SequenceModule
    from milkweed.train.optimisation import Optimisation
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "comparison": ("Comparison", "compare"),
            "comparison_files": ("save_comparison",),
            "densify": ("Densify", "DensifyOptions"),
            "distill": ("distill_",),
            "module": ("SequenceModule",),
            "optimisation": ("Optimisation",),
        },
    )

__all__ = [
    "Comparison",
    "Densify",
    "DensifyOptions",
    "Optimisation",
    "SequenceModule",
    "compare",
    "distill_",
    "save_comparison",
]
