"""What every data module has in common: checks on loading, and batches that can be repeated."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from milkweed._arguments import checked
from milkweed._registry import register_if_free, requires
from milkweed.data.batches import ArrayDataset, EvaluationBatches, TrainingBatches
from milkweed.data.checks import check_class_names, check_names, check_sizes, check_split
from milkweed.data.rates import Resampled

if TYPE_CHECKING:
    from milkweed.data.preprocessing import Preprocessing

SPLITS = ("train", "val", "test")


class SequenceData(LightningDataModule, ABC):
    """Sequences and what is to be learned of them, as batches `{"inputs": (B, L, D), "targets", "lengths": (B,)}`.

    A family implements `load` and names its `length`, `d_input` and `d_output`.

    Args:
        batch_size: Samples per optimiser step over all processes together.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
    """

    length: int
    d_input: int
    class_names: tuple[str, ...] | None = None
    """Names of the classes by number, where targets are classes of sequences; `load` may set them."""
    tokens: bool = False
    """Whether inputs are (B, L) integers below ``d_input``."""
    judged_by: str | None = None
    """Name of the metric that a benchmark is judged by, for tasks that know several."""
    horizon: int | None = None
    """Steps after each sequence that are asked for, where these are forecasts."""
    units: list[float] | None = None
    """What 1 is worth in each column of the targets, where these are standardised."""
    rate: float = 1.0
    """Validation and test have one sample for so many of the data; 1/k for k samples for every one."""
    vocabulary: str | None = None
    """Of text by characters, these in the order of their numbers."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_if_free("data", cls)

    @checked
    def __init__(self, batch_size: int, seed: int, limit: int | None) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.batch_size, self.seed, self.limit = batch_size, seed, limit
        self._splits: dict[str, ArrayDataset] = {}
        self._batches: TrainingBatches | None = None

    @property
    def d_output(self) -> int:
        """Numbers that a model gives, per sequence or per step: one for each class, or as many as targets have."""
        targets = self.split("train").targets
        return targets.shape[-1] if self.class_names is None else len(self.class_names)

    @abstractmethod
    def load(self) -> dict[str, ArrayDataset]:
        """Read the three splits, under the names `train`, `val` and `test`."""

    def preprocessing(self) -> "Preprocessing | None":
        """How a raw input becomes what `load` made of those that are there; None if that is not known."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Load and check the data, once; the splits are small enough to be held together."""
        if self._splits:
            return
        with torch.device("cpu"):  # where a program computes without numbers, these are there all the same
            loaded = self.load()
        owner = type(self).__name__
        check_names(owner, loaded, SPLITS)
        splits = {name: split.head(self.limit) if self.limit else split for name, split in loaded.items()}
        for name in SPLITS:
            self._check(name, splits[name])
        self._splits = splits
        try:
            check_sizes(owner, self, splits)
        except BaseException:
            self._splits = {}
            raise

    def _check(self, name: str, split: ArrayDataset) -> None:
        check_split(type(self).__name__, name, split, None if self.class_names is None else len(self.class_names))

    def split(self, name: str) -> ArrayDataset:
        """One loaded split: `train`, `val` or `test`."""
        self.setup()
        return self._splits[name]

    def resume_at(self, batch: int) -> None:
        """Let the next epoch of training start after some of its batches."""
        if self._batches:
            self._batches.resume_at(batch)

    def check_processes(self, world_size: int) -> None:
        """Refuse batch sizes that do not suit the data or the number of processes."""
        size = self.batch_size
        if size % world_size:
            nearest = max(size // world_size, 1) * world_size
            raise ValueError(
                f"batch_size={size} is the batch of all processes together and must divide among {world_size} of them; "
                f"use e.g. data.batch_size={nearest}"
            )
        training = len(self.split("train"))
        if size > training:
            raise ValueError(f"batch_size={size} exceeds the {training} training samples; use {training} or less")
        for name in ("val", "test"):
            self._check_evaluation(name, world_size)

    def _check_evaluation(self, name: str, world_size: int) -> None:
        if len(self.split(name)) < world_size:
            raise ValueError(
                f"the {name} split has {len(self.split(name))} samples, fewer than the {world_size} processes; "
                "use fewer trainer.devices"
            )

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training split, in an order that depends on (seed, epoch) alone."""
        rank, world_size = self._processes()
        self.check_processes(world_size)
        split = self.split("train")
        self._batches = TrainingBatches(len(split), self.batch_size, self.seed, rank, world_size)
        # batch_size=None hands whole index lists to the dataset: one tensor lookup per batch instead of one per sample.
        return DataLoader(split, sampler=self._batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split, in fixed order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split, in fixed order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches of the test split, in fixed order, for `Trainer.predict`."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, name: str) -> DataLoader:
        rank, world_size = self._processes()
        self._check_evaluation(name, world_size)
        split = self.split(name)
        if self.rate != 1:
            split = Resampled(split, self.rate, name)
        batches = EvaluationBatches(len(split), self.batch_size, rank, world_size)
        return DataLoader(split, sampler=batches, batch_size=None)

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _check_class(cls: type, name: str) -> None:
    if not issubclass(cls, SequenceData):
        raise TypeError(f"data {name!r} must be a subclass of milkweed.data.SequenceData; got {cls!r}")


requires("data", _check_class)


class SequenceClassificationData(SequenceData):
    """Sequences with one class each: `targets` are (B,); the options are those of `SequenceData`.

    A family implements `load` and names its `length`, `d_input` and `class_names`.
    """

    @property
    def d_output(self) -> int:
        """Number of classes."""
        check_class_names(type(self).__name__, self.class_names)
        return len(self.class_names or ())

    def _check(self, name: str, split: ArrayDataset) -> None:
        check_split(type(self).__name__, name, split, self.d_output)
