"""What recordings and images of one's own have in common: a file for each sample, and a class for each file."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from milkweed._files import path_text
from milkweed.data.base import SequenceData
from milkweed.data.batches import ArrayDataset
from milkweed.data.labelled_files import find_files, read_all
from milkweed.data.splits import check_shares

Split = tuple[Tensor, Tensor | None]
"""Inputs, (N, L, D), and their valid steps, (N,); None for all."""


class LabelledFolder(SequenceData):
    """Files with a class each, found and split by `find_files`; a base class.

    A family names its `suffixes` and `contents`, reads one file by `read` and makes sequences of all by `prepared`.
    """

    suffixes: ClassVar[tuple[str, ...]]
    contents: ClassVar[str]
    """What the files are, for progress."""

    def __init__(
        self,
        root: str,
        val: float,
        test: float,
        val_list: str | None,
        test_list: str | None,
        batch_size: int,
        seed: int,
        limit: int | None,
    ) -> None:
        super().__init__(batch_size, seed, limit)
        check_shares(val, test)
        self.root, self.val, self.test = Path(path_text("root", root)), val, test
        self.val_list, self.test_list = (
            None if path is None else Path(path_text(name, path))
            for name, path in (("val_list", val_list), ("test_list", test_list))
        )

    @property
    def length(self) -> int:  # type: ignore[override]
        """Steps of the longest sequence."""
        return self.split("train").inputs.shape[1]

    @abstractmethod
    def read(self, file: Path) -> np.ndarray:
        """Read and check one file."""

    @abstractmethod
    def prepared(self, read: dict[str, list[np.ndarray]]) -> dict[str, Split]:
        """Standardise what was read of each split by the training split, as sequences."""

    def load(self) -> dict[str, ArrayDataset]:
        """Read the files of each split."""
        shares, lists = (self.val, self.test), (self.val_list, self.test_list)
        found = find_files(type(self).__name__, self.root, self.suffixes, *shares, *lists, self.limit)
        self.class_names = found.class_names
        read = {name: read_all(files, self.read, self.contents) for name, files in found.files.items()}
        return {
            name: ArrayDataset(inputs, torch.tensor(found.labels[name]), lengths)
            for name, (inputs, lengths) in self.prepared(read).items()
        }
