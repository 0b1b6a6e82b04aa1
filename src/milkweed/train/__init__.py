"""Training: one LightningModule, its optimisation, callbacks, checkpoints and the run folder."""

from typing import TYPE_CHECKING

from milkweed._lazy import lazy

if TYPE_CHECKING:
    from milkweed.train.densify import Densify, DensifyOptions
    from milkweed.train.distill import distill_
    from milkweed.train.finished_run import load_predictor
    from milkweed.train.module import SequenceModule
    from milkweed.train.optimisation import Optimisation
    from milkweed.train.predictor import Predictor
    from milkweed.train.stream import Stream
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "densify": ("Densify", "DensifyOptions"),
            "distill": ("distill_",),
            "module": ("SequenceModule",),
            "optimisation": ("Optimisation",),
            "finished_run": ("load_predictor",),
            "predictor": ("Predictor",),
            "stream": ("Stream",),
        },
    )

__all__ = [
    "Densify",
    "DensifyOptions",
    "Optimisation",
    "Predictor",
    "SequenceModule",
    "Stream",
    "distill_",
    "load_predictor",
]
