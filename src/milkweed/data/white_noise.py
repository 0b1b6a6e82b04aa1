"""Band-limited white noise that a model gives back later: a test of its memory alone."""

from abc import abstractmethod

import numpy as np
import torch

from milkweed._arguments import checked
from milkweed._seeding import derived_seed
from milkweed.data.base import SPLITS, SequenceData
from milkweed.data.batches import ArrayDataset
from milkweed.data.preprocessing.signals import Signals


class WhiteNoise(SequenceData):
    """Signals of white noise with unit variance, drawn anew for every seed; a task implements `dataset`."""

    d_input = 1

    @checked
    def __init__(
        self, batch_size: int, length: int, band: float, train_size: int, eval_size: int, seed: int, limit: int | None
    ) -> None:
        super().__init__(batch_size, seed, limit)
        for name, value, least in (("length", length, 2), ("train_size", train_size, 1), ("eval_size", eval_size, 1)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if not 1 / length <= band <= 0.5:
            raise ValueError(
                f"band={band} must lie in {1 / length:g}…0.5 cycles per step: one cycle in length={length} steps at "
                "least, and 0.5 is white noise without a limit"
            )
        self.length, self.band = length, band
        self.sizes = {"train": train_size, "val": eval_size, "test": eval_size}

    def load(self) -> dict[str, ArrayDataset]:
        """Draw the signals."""
        datasets = {}
        for number, name in enumerate(SPLITS):
            count = min(self.sizes[name], self.limit or self.sizes[name])
            signals = white_noise(count, self.length, self.band, derived_seed(self.seed, number))
            datasets[name] = self.dataset(torch.from_numpy(signals))
        return datasets

    def preprocessing(self) -> Signals:
        """Signals of any length, as they are."""
        return Signals(1)

    @abstractmethod
    def dataset(self, signals: torch.Tensor) -> ArrayDataset:
        """Make inputs and targets of signals (N, L), float32."""


class Delay(WhiteNoise):
    """White noise, and the same a number of steps later: the target is u[t - lag], and 0 before there is one.

    Args:
        batch_size: Samples per optimiser step over all processes together.
        length: L, steps of a signal.
        lag: Steps between the input and its repetition.
        band: Highest frequency in the signals, in cycles per step; 0.5 is white noise without a limit.
        train_size: Signals to train on.
        eval_size: Signals for validation, and as many for the test.
        seed: Decides the signals and the order in which they are trained on.
        limit: At most this many samples per split, for trials.

    Source:
        The delay task of How to Train Your HiPPO (arXiv 2206.12037). There signals have a standard deviation of 0.5
        plus an offset that makes them start at 0, and are drawn anew for every epoch; here an error of 1 is that of
        a model that knows nothing, of a target that is never 0.
    """

    d_output = 1

    @checked
    def __init__(
        self,
        batch_size: int = 64,
        length: int = 4000,
        lag: int = 1000,
        band: float = 0.25,
        train_size: int = 16384,
        eval_size: int = 1024,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, length, band, train_size, eval_size, seed, limit)
        if not 0 < lag < length:
            raise ValueError(f"lag={lag} must be at least 1 and below length={length}; use e.g. {length // 4 or 1}")
        self.lag = lag

    def dataset(self, signals: torch.Tensor) -> ArrayDataset:
        """Pair every signal (N, L) with its repetition: inputs and targets, both (N, L, 1)."""
        # Two views of the same numbers.
        padded = torch.nn.functional.pad(signals, (self.lag, 0))[..., None]
        return ArrayDataset(padded[:, self.lag :], padded[:, : self.length])


class Reconstruct(WhiteNoise):
    """White noise, to be written down again after it has ended: the targets are its last `memory` steps, in order.

    Args:
        batch_size: Samples per optimiser step over all processes together.
        length: L, steps of a signal.
        memory: How many of its last steps are asked for.
        band: Highest frequency in the signals, in cycles per step; 0.5 is white noise without a limit.
        train_size: Signals to train on.
        eval_size: Signals for validation, and as many for the test.
        seed: Decides the signals and the order in which they are trained on.
        limit: At most this many samples per split, for trials.

    Source:
        The reconstruction task of How to Train Your HiPPO (arXiv 2206.12037), with the differences of `Delay`.
    """

    @checked
    def __init__(
        self,
        batch_size: int = 64,
        length: int = 4000,
        memory: int = 1000,
        band: float = 0.1,
        train_size: int = 16384,
        eval_size: int = 1024,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, length, band, train_size, eval_size, seed, limit)
        if not 0 < memory <= length:
            raise ValueError(
                f"memory={memory} must be at least 1 and at most length={length}; use e.g. {length // 4 or 1}"
            )
        self.memory = memory

    @property
    def d_output(self) -> int:
        """Steps that are asked for."""
        return self.memory

    def dataset(self, signals: torch.Tensor) -> ArrayDataset:
        """Pair every signal (N, L) with its end: inputs (N, L, 1) and targets (N, memory)."""
        return ArrayDataset(signals[..., None], signals[:, -self.memory :])


def white_noise(count: int, length: int, band: float, seed: int) -> np.ndarray:
    """Draw signals (N, L) with normal Fourier coefficients up to a highest frequency, and 0 above.

    They have no mean and, on average, a variance of 1; a smaller count gives the first ones of a larger.
    """
    frequencies = int(band * length + 1e-9)
    # RandomState's streams are frozen for ever, those of the newer generators are not.
    parts = np.random.RandomState(seed).standard_normal((count, frequencies, 2))
    coefficients = np.zeros((count, length // 2 + 1), complex)
    coefficients[:, 1 : frequencies + 1] = parts[..., 0] + 1j * parts[..., 1]
    if 2 * frequencies == length:
        coefficients[:, -1] = parts[:, -1, 0]  # alternating signs have no phase
    # A pair of conjugate coefficients adds 2 (1 + 1) to the power, alternating signs 1.
    power = 4 * frequencies - (3 if 2 * frequencies == length else 0)
    return (np.fft.irfft(coefficients, length) * (length / np.sqrt(power))).astype(np.float32)
