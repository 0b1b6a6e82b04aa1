"""Reader for the idx files of MNIST and its kin, plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Args:
        path: The file; a name ending in `.gz` is unpacked on the fly.
        dimensions: Expected number of dimensions: 3 for images, 1 for labels.

    Returns:
        The array, uint8.

    Raises:
        ValueError: If the file is no such idx file, is truncated, or has bytes to spare.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a corrupt or truncated gzip file ({error}); download it again") from error
    header = 4 + 4 * dimensions
    magic = struct.pack(">HBB", 0, 8, dimensions)
    if content[:4] != magic:
        raise ValueError(
            f"{path} is no idx file of bytes in {dimensions} dimensions: it starts with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()}; check that the files were not swapped"
        )
    if len(content) < header:
        raise ValueError(f"{path} is truncated: {len(content)} bytes do not hold its header; download it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} should hold {' × '.join(map(str, shape))} bytes after its header but holds "
            f"{len(content) - header}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
