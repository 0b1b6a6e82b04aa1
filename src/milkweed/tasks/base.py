"""What every task has: a loss, a metric that it is judged by, and averages over epochs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torchmetrics import MeanMetric, Metric

from milkweed._batches import Batch
from milkweed._registry import register_if_free, requires

STAGES = ("train", "val", "test")


class Task(nn.Module, ABC):
    """What a model is trained to do; a task names its `metric` and implements `loss`, `score` and `update_averages`.

    Every `stage` is `train`, `val` or `test`, every `batch` what a data module yields.
    """

    optimisation: ClassVar[Mapping[str, Any]] = {}
    """How such tasks are usually trained: what differs from the defaults of `milkweed.train.optimisation`."""
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """AdamW's."""
    metric: str
    """What the task is judged by, beside its loss; its value on the validation split decides which epoch was best."""
    larger_is_better: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_if_free("task", cls)

    def __init__(self) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in STAGES})

    @abstractmethod
    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compare the model's outputs with the targets."""

    @abstractmethod
    def score(self, stage: str) -> Metric:
        """The metric that the task is judged by, of one stage."""

    @abstractmethod
    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch; outputs and loss are detached."""

    def further_scores(self, stage: str) -> dict[str, Metric]:
        """What is shown beside the metric that the task is judged by."""
        return {}

    def averages(self, stage: str) -> dict[str, Metric]:
        """All that is logged, by the names it gets in metrics.csv."""
        scores = {"loss": self.losses[f"{stage}_loss"], self.metric: self.score(stage), **self.further_scores(stage)}
        return {f"{stage}_{name}": metric for name, metric in scores.items()}

    def figures(self, stage: str, loader: Any) -> dict[str, torch.Tensor]:
        """What can be computed only once all batches of a loader have been measured."""
        return {}

    def start_epoch(self, stage: str) -> None:
        """Start the averages of a training epoch anew; those of the others are reset where they are logged."""
        if stage == "train":
            for metric in self.averages(stage).values():
                metric.reset()

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """What the model's outputs for a batch say, without its targets: tensors by name, a row for each sample.

        `classes` (B,) with `probabilities` (B, classes), or `values`, are written out by `milkweed predict`.
        """
        return {"values": outputs}

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that cannot do the task."""

    def prepare(self, model: nn.Module) -> None:
        """Give a model that is about to be trained its start, where that is not at random."""

    def check_inputs(self, stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
        """Refuse inputs that are neither sequences of features nor tokens."""
        wanted = 3 if inputs.is_floating_point() else 2
        if inputs.ndim != wanted or 0 in inputs.shape:
            shape = "(batch, length, features)" if wanted == 3 else "tokens (batch, length)"
            raise ValueError(
                f"{stage} batch {batch_idx}: inputs must be {shape} with none of them 0, got {tuple(inputs.shape)}; "
                "check the data module's batch_size and its files"
            )

    def run_model(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Run a model on a batch; a task whose model reads more than inputs and lengths overrides this."""
        return model(batch["inputs"], batch["lengths"])


def _check_class(cls: type, name: str) -> None:
    if not issubclass(cls, Task):
        raise TypeError(f"task {name!r} must be a subclass of milkweed.tasks.Task; got {cls!r}")


requires("task", _check_class)
