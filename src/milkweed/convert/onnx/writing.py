"""The files of an ONNX model: whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.destination import copy_side_files
from milkweed.convert.hub.transformers_files import CONFIG

SUFFIX = ".onnx"
# As optimum and sentence-transformers look for it on the hub.
DATA_SUFFIX = ".onnx_data"
# A file of Protocol Buffers holds less than 2 GiB; the graph needs some of it.
LARGEST_SINGLE_FILE = 2**31 - 2**26


def check_place(file: Path, overwrite: bool) -> None:
    """Refuse a place that is no ONNX file or holds one, or the weights of one."""
    if not file.name:
        raise FolderError(f"file={str(file)!r} names no file; expected one that ends in {SUFFIX}, as in 'model.onnx'")
    if file.suffix.lower() != SUFFIX:
        raise FolderError(f"file={str(file)!r} must end in {SUFFIX}, as in {file.with_suffix(SUFFIX).name!r}")
    with _writing(file):
        there = [each for each in (file, file.with_suffix(DATA_SUFFIX)) if _is_there(each)]
        folder = next((each for each in there if each.is_dir()), None)
    if folder is not None:
        raise FolderError(f"file={str(folder)!r} is a folder; name a file in it, as in {str(folder / 'model.onnx')!r}")
    if there and not overwrite:
        raise FolderError(f"file={str(there[0])!r} exists; choose another name, or replace it with overwrite=True")


def _is_there(path: Path) -> bool:
    """Whether there is anything of a name, a link that leads nowhere included; an OSError if it cannot be one."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def staged(file: Path) -> Iterator[Path]:
    """Give an empty folder beside ``file``, whose files take their places when the block ends well."""
    parent = file.parent
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    staging = parent / f".{file.stem}-{secrets.token_hex(4)}"
    try:
        with _writing(file):
            staging.mkdir(parents=True)
        yield staging
        with _writing(file):
            _publish(staging, parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # where others have come to live
            for path in made:
                path.rmdir()
        raise


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FolderError(
            f"file={str(file)!r} cannot be written: {error.strerror or error}; nothing is left of it"
        ) from error


def _publish(staging: Path, parent: Path) -> None:
    """Move files to their places: all of them or, after an error, none, and what was there is there again."""
    models = sorted(staging.glob(f"*{SUFFIX}"))
    # Each model after the weights beside it, so that none is met without its own.
    fresh = [*sorted(staging.glob(f"*{DATA_SUFFIX}")), *models]
    former = [parent / name for model in models for name in (model.name, model.with_suffix(DATA_SUFFIX).name)]
    attic = staging / "former"
    attic.mkdir()
    kept, placed = [], []
    try:
        for path in filter(_is_there, former):
            kept.append(path)
            path.rename(attic / path.name)
        for path in fresh:
            placed.append(parent / path.name)
            path.rename(placed[-1])
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        for path in kept:
            if _is_there(attic / path.name):
                (attic / path.name).rename(path)
        raise
    shutil.rmtree(staging)


def save(model: Any, file: Path, target: Path) -> None:
    """Write a model, with its weights in a file beside it if they are too many for one; errors name the target."""
    import onnx_ir

    size = sum(each.const_value.nbytes for each in model.graph.initializers.values() if each.const_value is not None)
    beside = file.with_suffix(DATA_SUFFIX).name if size > LARGEST_SINGLE_FILE else None
    with _writing(target):
        onnx_ir.save(model, file, external_data=beside)


def size_of(file: Path) -> int:
    """Bytes of a model's file and of the weights beside it."""
    beside = file.with_suffix(DATA_SUFFIX)
    return file.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def home_of(file: Path) -> Path:
    """The folder that a model's tokenizer and config are looked for in."""
    return file.parent.parent if file.parent.name == "onnx" else file.parent


def is_new(folder: Path) -> bool:
    """Whether there is nothing in a folder yet."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def accompany(source: Path, home: Path) -> Sequence[str]:
    """Copy the tokenizer, the config and other small files of a model to where its ONNX file is; gives their names."""
    before = {path.name for path in home.iterdir()}
    copy_side_files(source, home)
    if (source / CONFIG).is_file():
        shutil.copyfile(source / CONFIG, home / CONFIG)
    return sorted({path.name for path in home.iterdir()} - before)
