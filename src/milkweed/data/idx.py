"""Reader for the idx files of MNIST and its kin, plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

MOST_PACKED = 1032
"""What one byte of a gzip file can unpack to at most, by the format."""


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read one idx file of unsigned bytes, plain or gzipped: `dimensions` is 3 for images, 1 for labels.

    Nothing is unpacked beyond what the header states, and nothing at all if the file cannot hold that.
    """
    packed = path.suffix == ".gz"
    most = path.stat().st_size * (MOST_PACKED if packed else 1)
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read(path, cast("BinaryIO", file), dimensions, most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a corrupt or truncated gzip file ({error}); download it again") from error


def _read(path: Path, file: BinaryIO, dimensions: int, most: int) -> np.ndarray:
    magic, header = struct.pack(">HBB", 0, 8, dimensions), file.read(4 + 4 * dimensions)
    if header[:4] != magic:
        raise ValueError(
            f"{path} is not an idx file of bytes in {dimensions} dimensions: it starts with "
            f"{header[:4].hex() or 'nothing'}, expected {magic.hex()}; check that the files were not swapped"
        )
    if len(header) < 4 + 4 * dimensions:
        raise ValueError(f"{path} is truncated: {len(header)} bytes do not hold its header; download it again")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size = math.prod(shape)
    stated = f"{path} should hold {' × '.join(map(str, shape))} bytes after its header"
    if size > most:
        raise ValueError(f"{stated} but cannot hold more than {most}; download it again")
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{stated} but holds {len(content)}; download it again")
    if file.read(1):
        raise ValueError(f"{stated} but holds more; download it again")
    return np.frombuffer(content, np.uint8).reshape(shape)
