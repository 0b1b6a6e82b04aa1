"""Images: read from files, and read step by step as sequences."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
Steps = Literal["pixels", "rows", "patches"]


def read_image(file: Path, *, grey: bool, size: int | None) -> np.ndarray:
    """Read an image as (height, width, colours) levels 0 … 255, uint8."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('images are read by Pillow: pip install "milkweed[data]"') from error
    try:
        with Image.open(file) as opened:
            image = _eight_bits(opened).convert("L" if grey else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is no image that can be read: {error}; remove it or replace it") from error
    if size is not None:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    levels = np.asarray(image)
    return levels[..., None] if levels.ndim == 2 else levels


def _eight_bits(image: Any) -> Any:
    """An image of 16 bits for each level in 8, which Pillow would cut off; any other as it is."""
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"its levels are {levels.min()}…{levels.max()}, not those of 8 or 16 bits")
    from PIL import Image

    return Image.fromarray((levels // 257).astype(np.uint8))


def check_patch(patch: int, shape: tuple[int, ...]) -> None:
    """Refuse patches that do not cover an image of (height, width) pixels."""
    if any(length % patch for length in shape):
        raise ValueError(
            f"data.patch={patch} must divide the {shape[0]} × {shape[1]} pixels of the images; use e.g. "
            f"data.size={patch * max(1, min(shape) // patch)}"
        )


def as_steps(images: Tensor, steps: Steps, patch: int) -> Tensor:
    """Read images (N, height, width, colours) step by step: (N, L, D)."""
    if steps == "pixels":
        return images.flatten(1, 2)
    if steps == "rows":
        return images.flatten(2, 3)
    count, height, width, colours = images.shape
    patches = images.reshape(count, height // patch, patch, width // patch, patch, colours).transpose(2, 3)
    return patches.reshape(count, (height // patch) * (width // patch), patch * patch * colours)
