"""scikit-learn's handwritten digits: 8 × 8 images as 64 steps of one pixel, or 8 steps of a row."""

import numpy as np
import torch

from milkweed._arguments import checked
from milkweed.data.base import SequenceClassificationData
from milkweed.data.batches import ArrayDataset
from milkweed.data.preprocessing.signals import GreyImages


class Digits(SequenceClassificationData):
    """1,797 handwritten digits that ship with scikit-learn, as sequences of 64 grey levels or of 8 rows.

    Inputs are standardised: (grey level 0 … 16 - mean) / std over all pixels of the training split. A model trained on
    them wants new images in the same way; the attributes `mean` and `std` hold the two numbers after `setup`.

    The split (70 / 10 / 20 % of every class) is fixed: it does not depend on the seed.

    Args:
        batch_size: Samples per optimiser step over all processes together.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
        rows: Whether a step is a row of 8 grey levels; otherwise it is one grey level.
    """

    length = 64
    d_input = 1
    class_names = tuple("0123456789")

    @checked
    def __init__(self, batch_size: int = 64, seed: int = 0, limit: int | None = None, rows: bool = False) -> None:
        super().__init__(batch_size, seed, limit)
        if rows:
            self.length = self.d_input = 8

    def load(self) -> dict[str, ArrayDataset]:
        """Read the digits from scikit-learn, split and standardise them."""
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'the digits come with scikit-learn, which is not installed: pip install "milkweed[train]"'
            ) from error
        images, targets = load_digits(return_X_y=True)
        parts = stratified_split(targets)
        self.mean, self.std = float(images[parts["train"]].mean()), float(images[parts["train"]].std())
        inputs = torch.from_numpy((images - self.mean) / self.std).float()
        inputs = inputs.unflatten(1, (8, 8)) if self.length == 8 else inputs.unsqueeze(-1)
        labels = torch.from_numpy(targets).long()
        return {name: ArrayDataset(inputs[chosen], labels[chosen]) for name, chosen in parts.items()}

    def preprocessing(self) -> GreyImages:
        """Images of 8 × 8 grey levels from 0 to 16."""
        self.setup()
        scaled = {"mean": self.mean / 16, "std": self.std / 16}
        return GreyImages([8, 8], 16, **scaled, rows=self.length == 8, class_names=self.class_names)


def stratified_split(targets: np.ndarray, val: float = 0.1, test: float = 0.2) -> dict[str, np.ndarray]:
    """Split samples by class in fixed proportions, always in the same way: sorted numbers as `train`, `val`, `test`."""
    # RandomState's streams are frozen for ever, those of the newer generators are not.
    random = np.random.RandomState(0)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for label in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == label))
        first, second = round(val * len(members)), round((val + test) * len(members))
        for name, chosen in zip(("val", "test", "train"), np.split(members, [first, second]), strict=True):
            parts[name].append(chosen)
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}
