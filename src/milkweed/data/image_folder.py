"""Images of one's own, one class each, read as sequences of pixels, rows or patches."""

from pathlib import Path

import numpy as np
import torch

from milkweed._arguments import checked
from milkweed.data.images import SUFFIXES, Steps, as_steps, check_patch, read_image
from milkweed.data.labelled_folder import LabelledFolder, Split
from milkweed.data.preprocessing import Images


class ImageFolder(LabelledFolder):
    """Images with a class each: a folder of files for each class, or a table of files, as of `WavFolder`.

    Inputs are (level - mean) / standard deviation for each colour, both of the training split.

    Args:
        root: A folder with a folder for each class; or with `train`, `val` and `test` and these in them; or a .csv with
            the columns `file`, `label` and, if the splits are known, `split`.
        steps: What a step of the sequence is: `pixels` in reading order, `rows` from the top, or square `patches`.
        grey: Whether colours become one level of grey.
        size: Height and width to which images are scaled; by default all must have one size.
        patch: Height and width of a patch.
        val: Share of the files for validation, where no split is named.
        test: The same for the test.
        val_list: Text file with the paths below `root` of the images for validation, a line each.
        test_list: The same for the test.
        batch_size: Samples per optimiser step over all processes together.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
    """

    suffixes = SUFFIXES
    contents = "images"

    @checked(but=("root", "val_list", "test_list", "steps"))
    def __init__(
        self,
        root: str,
        steps: Steps = "pixels",
        grey: bool = False,
        size: int | None = None,
        patch: int = 4,
        val: float = 0.1,
        test: float = 0.1,
        val_list: str | None = None,
        test_list: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(root, val, test, val_list, test_list, batch_size, seed, limit)
        if steps not in {"pixels", "rows", "patches"}:
            raise ValueError(f"steps={steps!r} must be 'pixels', 'rows' or 'patches'")
        for name, value in (("size", size), ("patch", patch)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.steps, self.grey, self.size, self.patch = steps, grey, size, patch
        self.mean = self.std = torch.zeros(1)
        self._shape: tuple[int, int] | None = None

    @property
    def d_input(self) -> int:  # type: ignore[override]
        """Numbers of each step."""
        return self.split("train").inputs.shape[2]

    def prepared(self, read: dict[str, list[np.ndarray]]) -> dict[str, Split]:
        """Standardise the levels of each colour, and read the images step by step."""
        levels = {name: np.stack(images) for name, images in read.items()}
        training = levels["train"].reshape(-1, levels["train"].shape[-1])
        mean, std = training.mean(0, dtype=np.float64), training.std(0, dtype=np.float64)
        self.mean, self.std = torch.from_numpy(mean).float(), torch.from_numpy(np.where(std > 0, std, 1)).float()
        return {name: (self._sequences(images), None) for name, images in levels.items()}

    def read(self, file: Path) -> np.ndarray:
        """Read one image: (height, width, colours) levels 0 … 255."""
        image = read_image(file, grey=self.grey, size=self.size)
        shape = image.shape[:2]
        if self._shape is None:
            self._shape, self._first = shape, file
        if shape != self._shape:
            raise ValueError(
                f"{file} has {shape[0]} × {shape[1]} pixels, {self._first} {self._shape[0]} × {self._shape[1]}; "
                f"scale all to one size, e.g. data.size={min(*shape, *self._shape)}"
            )
        if self.steps == "patches":
            check_patch(self.patch, shape)
        return image

    def preprocessing(self) -> Images:
        """Images like these."""
        self.setup()
        assert self._shape is not None  # the training split has an image
        return Images(
            colours=1 if self.grey else 3,
            size=list(self._shape),
            scale=self.size is not None,
            steps=self.steps,
            patch=self.patch,
            mean=self.mean.tolist(),
            std=self.std.tolist(),
            class_names=self.class_names,
        )

    def _sequences(self, images: np.ndarray) -> torch.Tensor:
        levels = (torch.from_numpy(images).float() - self.mean) / self.std
        return as_steps(levels, self.steps, self.patch)
