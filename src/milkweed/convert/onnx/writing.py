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
    """Refuse a place that is no ONNX file or holds one."""
    if file.suffix.lower() != SUFFIX:
        raise FolderError(f"file={str(file)!r} must end in {SUFFIX}, as in {file.with_suffix(SUFFIX).name!r}")
    if file.is_dir():
        raise FolderError(f"file={str(file)!r} is a folder; name a file in it, as in {str(file / 'model.onnx')!r}")
    if file.exists() and not overwrite:
        raise FolderError(f"file={str(file)!r} exists; choose another name, or replace it with overwrite=True")


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
    """Move files to their places, each model after the weights beside it, so that none is met without its own."""
    models = sorted(staging.glob(f"*{SUFFIX}"))
    for model in models:
        (parent / model.name).unlink(missing_ok=True)
        (parent / model.name).with_suffix(DATA_SUFFIX).unlink(missing_ok=True)
    for path in [*sorted(staging.glob(f"*{DATA_SUFFIX}")), *models]:
        path.replace(parent / path.name)
    staging.rmdir()


def save(model: Any, file: Path) -> None:
    """Write a model, with its weights in a file beside it if they are too many for one."""
    import onnx_ir

    size = sum(each.const_value.nbytes for each in model.graph.initializers.values() if each.const_value is not None)
    beside = file.with_suffix(DATA_SUFFIX).name if size > LARGEST_SINGLE_FILE else None
    with _writing(file):
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
