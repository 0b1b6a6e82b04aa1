"""Files of tensors with a description: safetensors, read as data."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from milkweed._disk import DiskFullError
from milkweed._tensor_files import read_safetensors_header

SUFFIX = ".safetensors"
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def file_in(path: str | os.PathLike[str], name: str) -> Path:
    """The file that a path stands for: itself if it ends in ``.safetensors``, else the one in this folder."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a folder or a file name ending in {SUFFIX}; got {path!r}")
    path = Path(path)
    return path if path.suffix == SUFFIX else path / name


def read_header(file: Path, writer: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file's tensors, on the meta device, and its metadata, but no numbers; messages name the writer."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the folder or file that {writer} wrote")
    try:
        entries = read_safetensors_header(file)
        with safe_open(file, framework="pt") as stored:  # checks that they fit the file
            metadata = stored.metadata() or {}
        entries.pop("__metadata__", None)
        unknown = sorted({entry["dtype"] for entry in entries.values()} - _DTYPES.keys())
        if unknown:
            raise ValueError(f"its dtype {unknown[0]} is not supported; supported are: {', '.join(_DTYPES)}")
        tensors = {
            name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
            for name, entry in entries.items()
        }
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file} is corrupt or truncated ({error}); restore it or write it again") from error
    return tensors, metadata


def read_tensors(
    file: Path, writer: str, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file's tensors and metadata into memory of their own, which later changes of the file do not reach."""
    header, _ = read_header(file, writer)
    check_device(device)
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: _own(stored.get_tensor(name), device) for name in header}, stored.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is corrupt or truncated ({error}); restore it or write it again") from error


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Report a full disk, or another failure to write a file: safetensors and Python differ in that."""
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, SafetensorError) as error:
        number = re.search(r"(?:os error |Errno )(\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(file)) from error


def _own(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A copy of a map of a file; unlike that, it is aligned as torch's own tensors are."""
    return tensor.to(device, copy=True)


def check_device(device: torch.device | str) -> None:
    """Refuse a device on which there are no numbers, or that is not there."""
    if device is None:  # which torch takes for the default
        raise TypeError("device must be a device such as 'cpu' or 'cuda'; got None")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch without CUDA asserts
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device={device!r} cannot be used: {reason}") from error
    if found.type == "meta":
        raise ValueError("device='meta' has no numbers; give one that has, e.g. 'cpu'")


def overlap(source: Path, out: Path, argument: str) -> str:
    """The message that a converted model would be written where the dense one is."""
    return f"{argument} {out} overlaps with the model that is read, {source}; choose a folder beside it"


def written_by_milkweed(file: Path) -> bool:
    """Whether a file's metadata names milkweed; False for a file that cannot be read."""
    try:
        with safe_open(file, framework="pt") as stored:
            return "milkweed" in (stored.metadata() or {})
    except SafetensorError:
        return False
