"""Signals and grey images as raw inputs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkweed.data.idx import read_idx
from milkweed.data.preprocessing.arrays import numeric, read_arrays
from milkweed.data.preprocessing.base import Preprocessing, Sample, check_counts, check_finite, check_scale


class Signals(Preprocessing):
    """Sequences of numbers, (L, width) or many of them, (N, L, width); with one number per step also (L,) and (N, L).

    The model reads (number - mean) / std.

    Args:
        width: D, numbers per step.
        length: L, if every sequence has so many steps at the rate of the training.
        mean: Of every number of a step, or of all.
        std: The same.
        class_names: Names of the classes.
    """

    def __init__(
        self,
        width: int,
        length: int | None = None,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
        class_names: Iterable[str] | None = None,
    ) -> None:
        super().__init__(class_names, width=width, length=length, mean=mean, std=std)
        check_counts(width=width, length=length)
        check_scale(mean, std, width)
        self.width, self.length = width, length
        self.mean, self.std = (torch.as_tensor(each, dtype=torch.float64) for each in (mean, std))

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give every sequence of a source."""
        for name, values in read_arrays(source):
            many = self._sequences(name, values)
            for number, each in enumerate(many):
                where = f"{name}[{number}]" if len(many) > 1 else name
                self._check_length(where, len(each), rate)
                yield where, {"inputs": self.scaled(where, each)}

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Prepare some steps."""
        values = numeric("chunk", chunk.detach().cpu() if isinstance(chunk, Tensor) else chunk)
        if values.ndim == 0 or (values.ndim == 1 and self.width > 1):
            values = values[None]
        if values.ndim == 1:
            values = values[:, None]
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != self.width or not len(values):
            raise ValueError(f"chunk must be (D={self.width},) or (T, D={self.width}), T >= 1; got {values.shape}")
        return self.scaled("chunk", values)

    def _sequences(self, name: str, values: np.ndarray) -> np.ndarray:
        if self.width == 1 and (values.ndim == 1 or (values.ndim == 2 and values.shape[1] != 1)):
            values = values[..., None]
        if values.ndim not in {2, 3} or values.shape[-1] != self.width or 0 in values.shape:
            raise ValueError(
                f"{name} must be (L, D) or (N, L, D) with D={self.width} numbers per step, as in training; got shape "
                f"{values.shape}"
            )
        return values if values.ndim == 3 else values[None]

    def _check_length(self, name: str, length: int, rate: float) -> None:
        wanted = None if self.length is None else int(np.ceil(self.length / rate))
        if wanted not in {None, length}:
            at = "" if rate == 1 else f" at rate={rate:g}"
            raise ValueError(f"{name} has {length} steps; the model was trained on {wanted}{at}; cut or pad it")

    def scaled(self, name: str, values: np.ndarray) -> Tensor:
        """What the model reads of (T, D) numbers."""
        inputs = torch.from_numpy(np.ascontiguousarray(values).astype(np.float64))
        check_finite(name, inputs)
        return ((inputs - self.mean) / self.std).float()


class GreyImages(Preprocessing):
    """Grey images of one size as sequences of pixels, or of rows: arrays, image files, or idx files as MNIST's.

    Arrays are (height, width) or (N, height, width), flat ones (height width,) or (N, height width). The model reads
    (grey level / largest - mean) / std. At another rate it reads every rate-th pixel.

    Args:
        size: Height and width.
        largest: The grey level of white.
        mean: Of grey levels / largest.
        std: The same.
        rows: Whether a step is a row of pixels.
        permutation: The order in which the pixels are read, if that is not row by row.
        class_names: Names of the classes.
    """

    def __init__(
        self,
        size: list[int],
        largest: float,
        mean: float,
        std: float,
        rows: bool = False,
        permutation: list[int] | None = None,
        class_names: Iterable[str] | None = None,
    ) -> None:
        order = None if permutation is None else np.asarray(permutation)
        super().__init__(
            class_names, size=size, largest=largest, mean=mean, std=std, rows=rows, permutation=permutation
        )
        self.size, self.largest, self.mean, self.std, self.rows = tuple(size), largest, mean, std, rows
        self.permutation = order
        if order is not None and sorted(order.tolist()) != list(range(self.pixels)):
            raise ValueError(f"permutation must be of the {self.pixels} pixels")

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.size[0] * self.size[1]

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give every image of a source."""
        for name, values in self._arrays(source):
            many = self._images(name, values)
            for number, each in enumerate(many):
                where = f"{name}[{number}]" if len(many) > 1 else name
                yield where, {"inputs": self._sequence(self._scaled(where, each), rate)}

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Prepare some pixels, or rows of them."""
        if self.permutation is not None:
            return super().next_steps(chunk, position)
        width = self.size[1] if self.rows else 1
        values = numeric("chunk", chunk.detach().cpu() if isinstance(chunk, Tensor) else chunk)
        if values.size == 0 or values.size % width:
            raise ValueError(f"chunk must be whole steps of {width} grey levels; got shape {values.shape}")
        return self._scaled("chunk", values.reshape(-1, width))

    def _arrays(self, source: Any) -> Iterator[tuple[str, np.ndarray]]:
        path = Path(source) if isinstance(source, str | Path) else None
        if path is not None and path.name.removesuffix(".gz").endswith("idx3-ubyte"):
            yield str(path), read_idx(path, 3)
        elif path is not None and path.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"}:
            yield str(path), self._picture(path)
        else:
            yield from read_arrays(source)

    def _picture(self, path: Path) -> np.ndarray:
        try:
            from PIL import Image
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('images are read by Pillow: pip install "milkweed[data]"') from error
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("L"), np.float64) * (self.largest / 255)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no image that can be read: {error}") from error

    def _images(self, name: str, values: np.ndarray) -> np.ndarray:
        flat = (self.pixels,)
        for shape in (self.size, flat, (*flat, 1)):
            if values.shape == shape:
                return values.reshape(1, self.pixels)
            if len(values) and values.shape[1:] == shape:
                return values.reshape(len(values), self.pixels)
        height, width = self.size
        raise ValueError(
            f"{name} must be an image of {height} × {width} grey levels, or several, (N, {height}, {width}); got shape "
            f"{values.shape}; resize it"
        )

    def _scaled(self, name: str, values: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(values).astype(np.float64))
        check_finite(name, found)
        low, high = float(found.min()), float(found.max())
        if low < 0 or high > self.largest:
            raise ValueError(
                f"{name}: grey levels must lie in 0…{self.largest:g}, as in the data of the training; got {low:g}…"
                f"{high:g}; scale them"
            )
        return ((found / self.largest - self.mean) / self.std).float()

    def _sequence(self, pixels: Tensor, rate: float) -> Tensor:
        if self.permutation is not None:
            pixels = pixels[torch.from_numpy(self.permutation)]
        steps = pixels.reshape(self.size) if self.rows else pixels[:, None]
        if rate == 1:
            return steps
        if not 1 <= rate <= len(steps) or rate != round(rate):
            raise ValueError(f"rate={rate:g} must be a whole number from 1 to the {len(steps)} steps of an image")
        return steps[:: round(rate)]
