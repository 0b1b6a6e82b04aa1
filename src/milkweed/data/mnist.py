"""MNIST read pixel by pixel: 784 steps of one feature, in reading order or under a fixed permutation."""

from pathlib import Path

import numpy as np
import torch

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed.data.base import SequenceClassificationData
from milkweed.data.batches import ArrayDataset
from milkweed.data.idx import read_idx
from milkweed.data.preprocessing.signals import GreyImages

STEMS = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
MEAN, STD = 0.1307, 0.3081  # of the training pixels scaled to [0, 1]


class Mnist(SequenceClassificationData):
    """Sequential MNIST from the four public idx files, plain or gzipped.

    Args:
        root: Folder that holds the four files directly.
        batch_size: Samples per optimiser step over all processes together.
        permuted: Shuffle the pixels of every image by one fixed permutation.
        val_size: How many of the last training images are kept for validation.
        synthetic: Generated images instead of files, for trials; `root` is not read.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
    """

    length = 784
    d_input = 1
    class_names = tuple("0123456789")

    @checked(but=("root",))
    def __init__(
        self,
        root: str = "data/mnist",
        batch_size: int = 64,
        permuted: bool = False,
        val_size: int = 5000,
        synthetic: bool = False,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        root = path_text("root", root)
        super().__init__(batch_size, seed, limit)
        self.root, self.permuted, self.val_size, self.synthetic = Path(root), permuted, val_size, synthetic

    def load(self) -> dict[str, ArrayDataset]:
        """Read or generate the images, and split and standardise them."""
        arrays = generated_images() if self.synthetic else read_files(self.root)
        total = len(arrays["train_labels"])
        val_size = total // 4 if self.synthetic else self.val_size
        if not 0 < val_size < total:
            raise ValueError(f"val_size={val_size} must be at least 1 and below the {total} training images")
        train = self._dataset(arrays["train_images"], arrays["train_labels"])
        first = total - val_size
        return {
            "train": train.head(first),
            "val": ArrayDataset(train.inputs[first:], train.targets[first:]),
            "test": self._dataset(arrays["test_images"], arrays["test_labels"]),
        }

    def permutation(self) -> np.ndarray:
        """The order in which the pixels are read if they are permuted."""
        return np.random.RandomState(0).permutation(self.length)

    def preprocessing(self) -> GreyImages:
        """Images of 28 × 28 grey levels from 0 to 255."""
        order = self.permutation().tolist() if self.permuted else None
        return GreyImages([28, 28], 255, MEAN, STD, permutation=order, class_names=self.class_names)

    def _dataset(self, images: np.ndarray, labels: np.ndarray) -> ArrayDataset:
        pixels = images.reshape(len(images), self.length)
        if self.permuted:
            pixels = pixels[:, self.permutation()]
        inputs = torch.from_numpy(pixels.astype(np.float32)).div_(255).sub_(MEAN).div_(STD).unsqueeze_(-1)
        return ArrayDataset(inputs, torch.from_numpy(labels.astype(np.int64)))


def read_files(root: Path) -> dict[str, np.ndarray]:
    """Read the four idx files of a folder, by the keys of `STEMS`, and check that they belong together."""
    paths = find_files(root)
    arrays = {key: read_idx(path, 3 if key.endswith("images") else 1) for key, path in paths.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        path = paths[f"{part}_images"]
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{path} holds images of {images.shape[1:]} pixels, expected (28, 28); is it MNIST's?")
        if len(images) != len(labels):
            other = paths[f"{part}_labels"].name
            raise ValueError(f"{path} holds {len(images)} images but {other} {len(labels)} labels; download both again")
    return arrays


def find_files(root: Path) -> dict[str, Path]:
    """Find the four files, plain or gzipped, by the keys of `STEMS`."""
    paths = {}
    for key, stem in STEMS.items():
        for path in (root / stem, root / f"{stem}.gz"):
            if path.is_file():
                paths[key] = path
                break
    missing = [stem for key, stem in STEMS.items() if key not in paths]
    if missing:
        problem = f"lacks {', '.join(missing)}" if root.is_dir() else "is not a folder"
        raise FileNotFoundError(
            f"data.root={root} {problem}. Place the four public MNIST files (plain or .gz) there:\n  "
            + "\n  ".join(STEMS.values())
            + "\nand name the folder as data.root=DIR, or try data.synthetic=true"
        )
    return paths


def generated_images() -> dict[str, np.ndarray]:
    """Make noisy images whose brightness is their class, shaped like MNIST but few."""
    random = np.random.RandomState(0)
    arrays = {}
    for part, count in (("train", 512), ("test", 128)):
        labels = random.randint(0, 10, count)
        noise = random.randint(0, 120, (count, 28, 28))
        arrays[f"{part}_images"] = (noise + 13 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    return arrays
