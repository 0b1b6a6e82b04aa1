"""Tensors in a safetensors file whose bytes depend on nothing but what it holds."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from milkweed import _json

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file: equal tensors and metadata give equal bytes, in every process.

    safetensors sorts the tensors itself, but writes the metadata in the order of a hash table that differs from process
    to process. The header is therefore sorted afterwards, in place: the same entries take the same room, and the
    tensors are neither moved nor copied.

    Args:
        tensors: Contiguous tensors by name, none sharing memory with another.
        path: The file to write.
        metadata: Texts by name.

    Raises:
        RuntimeError: safetensors writes headers in another form than this function knows.
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


def check_header(path: str | os.PathLike[str]) -> None:
    """Refuse a safetensors file in whose header a name stands twice; safetensors would keep the last.

    Args:
        path: A file that safetensors has opened, so that its header is whole.

    Raises:
        ValueError: A tensor or a text of the metadata is there twice.
    """
    with open(path, "rb") as file:
        (size,) = _LENGTH.unpack(file.read(_LENGTH.size))
        try:
            _json.read(file.read(size))
        except _json.DoubledKeyError as error:
            raise ValueError(f"in the header of {os.fspath(path)} {error}; write it again") from error
