"""Safetensors files whose bytes depend only on what they hold."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from milkweed import _json

LARGEST_HEADER = 64 * 2**20
"""Bytes of a safetensors header that is read, with all of its metadata."""
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file: equal tensors and metadata give equal bytes, in every process.

    safetensors sorts the tensors itself, but writes the metadata in the order of a hash table that differs from process
    to process. The header is therefore sorted afterwards, in place: the same entries take the same room, and the
    tensors are neither moved nor copied. Tensors must be contiguous, none sharing memory with another.
    """
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    with open(path, "r+b") as file:
        (size,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header = json.loads(file.read(size))
        header[_METADATA] = dict(sorted(header.get(_METADATA, {}).items()))
        if not header[_METADATA]:
            return
        # As safetensors writes it: no blanks, characters as they are, padded with blanks.
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(sorted_header) > size:
            raise RuntimeError(
                f"the header of {os.fspath(path)} takes {len(sorted_header)} bytes sorted, {size} before"
            )
        file.seek(_LENGTH.size)
        file.write(sorted_header.ljust(size))


def read_safetensors_header(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a safetensors file says about its tensors, and nothing of them.

    That is ``{"dtype": ..., "shape": ..., "data_offsets": ...}`` by name, and the metadata under ``__metadata__``.
    safetensors checks whether they fit the file.
    """
    with open(file, "rb") as opened:
        start = opened.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        if length > LARGEST_HEADER and os.fstat(opened.fileno()).st_size > LARGEST_HEADER:
            raise ValueError(f"its header has {length:,} bytes; at most {LARGEST_HEADER:,} are read")
        text = opened.read(min(length, LARGEST_HEADER))
    if len(start) < _LENGTH.size or len(text) < length:
        raise ValueError("its header is truncated")
    try:
        found = _json.read(text.decode("utf-8"))
    except _json.DoubledKeyError as error:
        raise ValueError(f"in its header {error}; write it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"its header must be a mapping; got a {type(found).__name__}")
    return found
