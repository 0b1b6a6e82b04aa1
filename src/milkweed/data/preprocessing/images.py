"""Images of any colours as raw inputs."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkweed.data.images import SUFFIXES, Steps, as_steps, read_image
from milkweed.data.preprocessing.arrays import file_of, numeric, read_arrays
from milkweed.data.preprocessing.base import Preprocessing, Sample, check_counts, check_finite, check_scale


class Images(Preprocessing):
    """Images as sequences of pixels, rows or patches: image files, or arrays of levels 0 … 255.

    Arrays are (height, width, colours) or (N, height, width, colours); grey ones also (height, width) and
    (N, height, width). The model reads (level - mean) / std. At another rate it reads every rate-th step.

    Args:
        colours: 1 for grey, 3 for red, green and blue.
        size: Height and width; None for any.
        scale: Whether files of other sizes are scaled to it, as those of the training were.
        steps: What a step is: `pixels`, `rows` or `patches`.
        patch: Height and width of a patch.
        length: Steps to which longer sequences are cut; None for none.
        mean: Of the levels of every colour.
        std: The same.
        class_names: Names of the classes.
    """

    def __init__(
        self,
        colours: int,
        size: list[int] | None,
        scale: bool = False,
        steps: Steps = "pixels",
        patch: int = 1,
        length: int | None = None,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
        class_names: Iterable[str] | None = None,
    ) -> None:
        super().__init__(
            class_names,
            colours=colours,
            size=size,
            scale=scale,
            steps=steps,
            patch=patch,
            length=length,
            mean=mean,
            std=std,
        )
        check_counts(colours=colours, patch=patch, length=length)
        if size is not None and (len(size) != 2 or not all(type(side) is int and side > 0 for side in size)):
            raise ValueError(f"size must be a height and a width in pixels; got {size!r:.60}")
        check_scale(mean, std, colours)
        if steps not in {"pixels", "rows", "patches"}:
            raise ValueError(f"steps={steps!r:.60} must be 'pixels', 'rows' or 'patches'")
        self.colours, self.size, self.scale = colours, None if size is None else tuple(size), scale
        self.steps, self.patch, self.length = steps, patch, length
        self.mean, self.std = (torch.as_tensor(each, dtype=torch.float32) for each in (mean, std))

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give every image of a source."""
        for name, images in self._arrays(source):
            sequences = as_steps(self._scaled(name, images), self.steps, self.patch)[:, : self.length]
            if not 1 <= rate <= sequences.shape[1] or rate != round(rate):
                raise ValueError(
                    f"rate={rate:g} must be a whole number from 1 to the {sequences.shape[1]} steps of an image"
                )
            for number, each in enumerate(sequences):
                where = f"{name}[{number}]" if len(sequences) > 1 else name
                yield where, {"inputs": each[:: round(rate)]}

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Prepare some pixels, or rows of them, (T, pixels of a step, colours) or flat."""
        if self.steps == "patches" or (self.steps == "rows" and self.size is None):
            return super().next_steps(chunk, position)
        values = numeric("chunk", chunk.detach().cpu() if isinstance(chunk, Tensor) else chunk)
        width = self.size[1] if self.steps == "rows" and self.size else 1
        if values.size == 0 or values.size % (width * self.colours):
            raise ValueError(
                f"chunk must be whole steps of {width * self.colours} levels, as the {self.steps} of the training; got "
                f"shape {values.shape}"
            )
        return self._scaled("chunk", values.reshape(-1, width, self.colours)).flatten(1)

    def _arrays(self, source: Any) -> Iterator[tuple[str, np.ndarray]]:
        """Every image of a source as (N, height, width, colours)."""
        path = file_of(source, "an image", SUFFIXES)
        if path is not None and path.suffix.lower() in SUFFIXES:
            size = self.size[0] if self.scale and self.size else None
            yield str(path), self._checked(str(path), read_image(path, grey=self.colours == 1, size=size))
            return
        for name, values in read_arrays(source):
            yield name, self._checked(name, values)

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        found = values[..., None] if self.colours == 1 and values.shape[-1:] != (1,) else values
        found = found[None] if found.ndim == 3 else found
        if found.ndim != 4 or found.shape[3] != self.colours or 0 in found.shape:
            grey = " or (height, width) grey" if self.colours == 1 else ""
            raise ValueError(
                f"{name} must be levels (height, width, {self.colours}){grey} of an image, or several, (N, height, "
                f"width, {self.colours}); got shape {values.shape}"
            )
        if self.size is not None and found.shape[1:3] != self.size:
            raise ValueError(
                f"{name} has {found.shape[1]} × {found.shape[2]} pixels; the model was trained on {self.size[0]} × "
                f"{self.size[1]}; resize it"
            )
        return found

    def _scaled(self, name: str, levels: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(levels).astype(np.float32))
        check_finite(name, found)
        low, high = float(found.min()), float(found.max())
        if low < 0 or high > 255:
            raise ValueError(f"{name}: levels must lie in 0…255, as in files of images; got {low:g}…{high:g}")
        return (found - self.mean) / self.std
