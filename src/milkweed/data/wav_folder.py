"""Recordings of one's own, one class each: a folder of wavs."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.data.labelled_folder import LabelledFolder, Split
from milkweed.data.preprocessing import Recordings
from milkweed.data.sounds import SUFFIXES, mixed, read_sound, resampled


class WavFolder(LabelledFolder):
    """Recordings with a class each, sample by sample: a folder of files for each class, or a table of files.

    `root` holds a folder for each class; or the folders `train`, `val` and `test` with these in them; or it is a .csv
    with the columns `file`, `label` and, if the splits are known, `split`. What is not split is split by a hash of the
    file's path, so that new files leave the others where they are.

    Inputs are (amplitude - mean) / standard deviation, both of the training split; `lengths` are the samples of each
    recording, and what follows them is 0.

    Args:
        root: The folder, or the table.
        sample_rate: In Hz; recordings of other rates are resampled. By default all must have one rate.
        seconds: Longer recordings are cut to this, from their start; by default the longest decides.
        channels: 1 takes the mean of all channels; more must be there in every file.
        val: Share of the files for validation, where no split is named.
        test: The same for the test.
        val_list: Text file with the paths below `root` of the recordings for validation, a line each.
        test_list: The same for the test.
        batch_size: Samples per optimiser step over all processes together.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
    """

    suffixes = SUFFIXES
    contents = "recordings"

    @checked(but=("root", "val_list", "test_list"))
    def __init__(
        self,
        root: str,
        sample_rate: int | None = None,
        seconds: float | None = None,
        channels: int = 1,
        val: float = 0.1,
        test: float = 0.1,
        val_list: str | None = None,
        test_list: str | None = None,
        batch_size: int = 32,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(root, val, test, val_list, test_list, batch_size, seed, limit)
        for name, value in (("sample_rate", sample_rate), ("seconds", seconds), ("channels", channels)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be above 0")
        self.sample_rate, self.seconds, self.channels = sample_rate, seconds, channels
        self.d_input = channels
        self.mean = self.std = 0.0
        self._rate: tuple[int, Path] | None = None  # of all recordings, and the file that it comes from

    def prepared(self, read: dict[str, list[np.ndarray]]) -> dict[str, Split]:
        """Standardise the recordings, and pad them to the longest."""
        longest = max(len(sound) for sounds in read.values() for sound in sounds)
        samples = np.concatenate(read["train"])
        self.mean, self.std = float(samples.mean(dtype=np.float64)), float(samples.std(dtype=np.float64)) or 1.0
        return {
            name: (self._padded(sounds, longest), torch.tensor([len(sound) for sound in sounds]))
            for name, sounds in read.items()
        }

    def read(self, file: Path) -> np.ndarray:
        """Read one recording: (samples, channels) amplitudes in -1 … 1, at the module's rate and length."""
        amplitudes, rate = read_sound(file)
        amplitudes = mixed(file, amplitudes, self.channels)
        wanted, first = self._rate or (rate if self.sample_rate is None else self.sample_rate, file)
        self._rate = wanted, first
        if rate != wanted and self.sample_rate is None:
            raise ValueError(
                f"{file} has {rate} Hz, {first} {wanted} Hz; name the rate to which recordings are resampled, e.g. "
                f"data.sample_rate={min(rate, wanted)}"
            )
        return resampled(amplitudes, rate, wanted)[: self._longest(wanted)]

    def _longest(self, sample_rate: int) -> int | None:
        """Samples to which recordings are cut."""
        return None if self.seconds is None else max(1, round(self.seconds * sample_rate))

    def preprocessing(self) -> Recordings:
        """Recordings at the rate of these."""
        self.setup()
        assert self._rate is not None  # the training split has a recording
        rate, _ = self._rate
        return Recordings(
            sample_rate=rate,
            resample=self.sample_rate is not None,
            channels=self.channels,
            length=self._longest(rate),
            mean=self.mean,
            std=self.std,
            class_names=self.class_names,
        )

    def _padded(self, sounds: list[np.ndarray], longest: int) -> Tensor:
        found = torch.zeros(len(sounds), longest, self.channels)
        for row, sound in zip(found, sounds, strict=True):
            row[: len(sound)] = torch.from_numpy((sound - self.mean) / self.std)
        return found
