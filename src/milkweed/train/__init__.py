"""Training: one LightningModule, its optimisation, callbacks, checkpoints and the run folder."""

from typing import TYPE_CHECKING

from milkweed._lazy import lazy

if TYPE_CHECKING:
    from milkweed.train.comparison import Comparison, compare
    from milkweed.train.comparison_files import save_comparison
    from milkweed.train.densify import Densify, DensifyOptions
    from milkweed.train.distill import distill_
    from milkweed.train.find_predictor import load_predictor
    from milkweed.train.module import SequenceModule
    from milkweed.train.optimisation import Optimisation
    from milkweed.train.predictor import Predictor
    from milkweed.train.stream import Stream
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
            "find_predictor": ("load_predictor",),
            "predictor": ("Predictor",),
            "stream": ("Stream",),
        },
    )

__all__ = [
    "Comparison",
    "Densify",
    "DensifyOptions",
    "Optimisation",
    "Predictor",
    "SequenceModule",
    "Stream",
    "compare",
    "distill_",
    "load_predictor",
    "save_comparison",
]
