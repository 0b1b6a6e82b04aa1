"""Recordings as raw inputs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from milkweed.data.preprocessing.arrays import file_of, read_arrays
from milkweed.data.preprocessing.base import Preprocessing, Sample, check_counts
from milkweed.data.preprocessing.signals import Signals
from milkweed.data.sounds import SUFFIXES, mixed, read_sound, resampled

CHANNELS = 16
"""More than these are samples: an array has probably been given the wrong way round."""


class Recordings(Preprocessing):
    """Recordings: files, or amplitudes (samples,) or (samples, channels) at the sample rate of the training.

    The model reads (amplitude - mean) / std of the first ``length`` samples.

    Args:
        sample_rate: In Hz; files of another one are refused, or resampled.
        resample: Whether files are resampled, as those of the training were.
        channels: 1 takes the mean of all channels.
        length: Samples to which longer recordings are cut; None for none.
        mean: Of amplitudes.
        std: The same.
        class_names: Names of the classes.
    """

    def __init__(
        self,
        sample_rate: int,
        resample: bool = False,
        channels: int = 1,
        length: int | None = None,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
        class_names: Iterable[str] | None = None,
    ) -> None:
        super().__init__(
            class_names,
            sample_rate=sample_rate,
            resample=resample,
            channels=channels,
            length=length,
            mean=mean,
            std=std,
        )
        check_counts(sample_rate=sample_rate, channels=channels, length=length)
        if not isinstance(resample, bool):
            raise TypeError(f"resample must be true or false; got {resample!r:.60}")
        self.sample_rate, self.resample, self.channels, self.length = sample_rate, resample, channels, length
        self.signals = Signals(channels, None, mean, std)

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give a recording of a file, or every array of a source."""
        path = file_of(source, "a recording", SUFFIXES)
        if path is not None and path.suffix.lower() in SUFFIXES:
            yield str(path), self._sample(str(path), self._of_file(path, rate), rate)
            return
        for name, values in read_arrays(source):
            yield name, self._sample(name, self._amplitudes(name, values), rate)

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Prepare some samples, (T,) or (T, channels)."""
        return self.signals.next_steps(chunk, position)

    def _of_file(self, path: Path, rate: float) -> np.ndarray:
        amplitudes, found = read_sound(path)
        wanted = self.sample_rate / rate
        if found != wanted and not self.resample:
            raise ValueError(
                f"{path} has {found} Hz; the model reads {wanted:g} Hz{f' at rate {rate:g}' if rate != 1 else ''}; "
                f"resample it, or set the rate to {self.sample_rate / found:g} if the model can be run at another one"
            )
        if wanted != round(wanted):
            raise ValueError(f"rate={rate:g} makes {wanted:g} Hz of {self.sample_rate}, which is no whole number")
        return resampled(mixed(path, amplitudes, self.channels), found, round(wanted))

    def _amplitudes(self, name: str, values: np.ndarray) -> np.ndarray:
        found = values[:, None] if values.ndim == 1 else values
        if found.ndim != 2 or 0 in found.shape or found.shape[1] > CHANNELS:
            raise ValueError(
                f"{name} must be amplitudes (samples,) or (samples, channels) of one recording; got shape "
                f"{values.shape}; give several as a list"
            )
        return mixed(name, found, self.channels)

    def _sample(self, name: str, amplitudes: np.ndarray, rate: float) -> Sample:
        longest = None if self.length is None else max(1, round(self.length / rate))
        return {"inputs": self.signals.scaled(name, amplitudes[:longest])}
