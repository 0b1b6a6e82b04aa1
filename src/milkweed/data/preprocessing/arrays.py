"""Arrays as raw inputs: from Python, or from files that hold nothing but numbers."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

SUFFIXES = (".npy", ".npz", ".safetensors", ".csv", ".tsv", ".txt")


def read_arrays(source: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Give every array in a source with a name for it: an array, tensor or list of numbers, or a file of some."""
    if isinstance(source, str | Path):
        yield from _of_file(Path(source))
        return
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float() if source.dtype == torch.bfloat16 else source
    yield "the input", numeric("the input", source)


def file_of(source: Any, what: str, suffixes: tuple[str, ...]) -> Path | None:
    """The file that a source names, None of anything else; one that is not there is refused."""
    if not isinstance(source, str | Path):
        return None
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source} is not a file; give {what} ({', '.join(suffixes)}), or a file of arrays")
    return Path(source)


def numeric(name: str, values: Any) -> np.ndarray:
    """An array of real numbers; anything else is refused."""
    try:
        found = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: no array can be made of it ({error}); give rows of one length") from error
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers; got {found.dtype}")
    return found


def _of_file(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a file of numbers: {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}; got {path.suffix or 'no suffix'}")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        elif path.suffix in {".npy", ".npz"}:
            loaded = np.load(path, allow_pickle=False)
            found = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
        else:
            found = {"": _table(path)}
    except (SafetensorError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no {path.suffix} file of plain numbers ({error})") from error
    for name, values in found.items():
        where = f"{path}:{name}" if len(found) > 1 else str(path)
        yield where, numeric(where, values)


def _table(path: Path) -> np.ndarray:
    """Rows of numbers, a step each, with a line of names above or without."""
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if lines and not _is_numbers(lines[0].split(delimiter)):
        lines = lines[1:]
    return np.loadtxt(lines, delimiter=delimiter, ndmin=2)


def _is_numbers(cells: list[str]) -> bool:
    try:
        list(map(float, cells))
    except ValueError:
        return False
    return True
