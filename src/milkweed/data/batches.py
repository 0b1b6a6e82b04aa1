"""Which samples go into which batch, for training and evaluation, on one process or several."""

from collections.abc import Iterator

import torch
from torch.utils.data import Dataset, Sampler

from milkweed._seeding import derived_seed


class ArrayDataset(Dataset):
    """A split held in memory, indexed by a whole batch at a time.

    Args:
        inputs: Features, (N, L, D) float32; or tokens, (N, L) int64.
        targets: Classes, (N,) int64, or of every step, (N, L); or numbers per sequence or step, (N, ...) float32.
        lengths: Valid steps of every sample, (N,) int64; all L if None.
    """

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
        for name, values in (("inputs", inputs), ("targets", targets)):
            if not isinstance(values, torch.Tensor) or values.ndim == 0:
                raise TypeError(f"{name} must be a tensor, (N, ...); got {type(values).__name__}; use torch.as_tensor")
        self.inputs = inputs
        self.targets = targets
        self.lengths = (
            torch.full((len(inputs),), inputs.shape[1] if inputs.ndim > 1 else 1) if lengths is None else lengths
        )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[indices], "targets": self.targets[indices], "lengths": self.lengths[indices]}

    def head(self, count: int) -> "ArrayDataset":
        """The first samples only."""
        return ArrayDataset(self.inputs[:count], self.targets[:count], self.lengths[:count])


class TrainingBatches(Sampler[list[int]]):
    """Shuffled batches whose order depends on (seed, epoch) alone, so that a resumed epoch sees the same ones.

    Rank r of w takes samples [r::w] of every global batch: w processes together train on exactly the batches of one.
    The last, incomplete global batch is left out; every epoch leaves out other samples.

    Args:
        size: Samples in the split.
        batch_size: Samples per global batch, divisible by `world_size`.
        seed: The run's seed.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._first = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next; Lightning calls this."""
        self.epoch = epoch

    def resume_at(self, batch: int) -> None:
        """Let the next pass start after some batches of its epoch."""
        self._first = batch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        first, self._first = self._first, 0
        for batch in range(first, len(self)):
            start = batch * self.batch_size
            yield order[start + self.rank : start + self.batch_size : self.world_size].tolist()


class EvaluationBatches(Sampler[list[int]]):
    """Batches in order, every sample on exactly one process, and equally many non-empty batches on each.

    Equal counts matter because buffers are synchronised at every forward under DDP; padding with repeated samples, the
    usual answer, would falsify the metrics.

    Args:
        size: Samples in the split, at least `world_size`.
        batch_size: Samples per global batch, at least `world_size`.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.count = -(-size // batch_size)
        self.indices = torch.arange(rank, size, world_size)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.indices.tensor_split(self.count):
            yield batch.tolist()
