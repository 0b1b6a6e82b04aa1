"""The folder of a converted model: whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from milkweed._files import atomic_write, inside, read_json_file, stays_inside
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.safetensors_files import overlap

REPORT = "conversion.json"
# Tokenizers, templates, licences; never code, weights or files that only look like text.
SIDE_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".md", ""}
WRITTEN_BY_US = {"config.json", "model.safetensors.index.json", REPORT, "readme.md"}
LARGEST_SIDE_FILE = 64 * 2**20


@contextmanager
def staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder beside `out` that takes its place when the block ends well, and else vanishes."""
    out = out.expanduser().resolve()
    check_out(out, overwrite)
    staging = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    made = [staging, *(path for path in out.parents if not path.exists())]
    try:
        with writing(out):
            staging.mkdir(parents=True)
        yield staging
        check_out(out, overwrite)  # again: it may have come into being since
        with writing(out):
            _publish(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # the first that was not made, or in which others have come to live
            for path in made[1:]:
                path.rmdir()
        raise


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an error of the file system into a `FolderError` that names `out`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FolderError(f"out={str(out)!r} cannot be written: {reason}; nothing is left of it") from error


def check_apart(source: Path, out: Path) -> None:
    """Refuse to write into the model that is read, or around it."""
    source, out = source.resolve(), out.expanduser().resolve()
    if source == out or source in out.parents or out in source.parents:
        raise FolderError(overlap(source, out, "out"))


def check_space(folder: Path, preview: ConversionReport, dtype: str | None) -> None:
    """Refuse a disk on which the model will not fit."""
    parameters = min(preview.model_parameters, preview.model_parameters_after)
    needed, free = parameters * (4 if dtype == "float32" else 2), shutil.disk_usage(folder).free
    if free < needed:
        raise FolderError(f"out needs {needed / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free on its disk")


def copy_side_files(source: Path, folder: Path) -> list[str]:
    """Copy the tokenizer and other small files, as data; gives the names left out, links that leave the folder."""
    names = [
        path.name for path in sorted(source.iterdir()) if _is_side_file(path) and path.name.lower() not in WRITTEN_BY_US
    ]
    for module in _sentence_transformers_modules(source):
        # Such modules have small weights of their own.
        names += [
            f"{module}/{path.name}"
            for path in sorted((source / module).iterdir())
            if _is_side_file(path) or (path.suffix == ".safetensors" and path.is_file())
        ]
    left_out = [name for name in names if not stays_inside(source, source / name)]
    for name in names:
        if name not in left_out:
            # Whatever lies there already, a link is not written through.
            with atomic_write(inside(folder, name)) as file:
                shutil.copyfile(source / name, file)
    return left_out


def _is_side_file(path: Path) -> bool:
    named = path.suffix.lower() in SIDE_SUFFIXES and not path.name.startswith(".")
    return named and path.is_file() and path.stat().st_size <= LARGEST_SIDE_FILE


def _sentence_transformers_modules(source: Path) -> list[str]:
    """Folders right in the model's that its modules.json names."""
    try:
        named = {str(module["path"]) for module in read_json_file(source / "modules.json")}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []
    found = []
    for name in named:
        # One that leads elsewhere is passed over, as is the model's own folder, "", which holds the dense weights.
        with suppress(ValueError):
            path = inside(source, name)
            if path.parent == source and path != source and path.is_dir():
                found.append(name)
    return sorted(found)


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a place that holds what must not be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FolderError(f"out={str(out)!r} is a file; choose a new folder")
    if out == Path.cwd() or out.is_mount():
        raise FolderError(f"out={str(out)!r} cannot be put in place as a whole; choose a new folder in it")
    if any(out.iterdir()):
        if not overwrite:
            raise FolderError(f"out={str(out)!r} is not empty; choose a new folder, or replace it with overwrite=True")
        if not (out / REPORT).is_file():
            raise FolderError(
                f"overwrite=True replaces only what convert_folder wrote, but out={str(out)!r} holds no {REPORT}; "
                "choose a new folder, or remove it yourself"
            )


def _publish(staging: Path, out: Path) -> None:
    attic = staging.with_name(f"{staging.name}-old")
    if out.exists():
        out.rename(attic)
    try:
        staging.rename(out)
    except BaseException:
        if attic.exists():
            attic.rename(out)
        raise
    shutil.rmtree(attic, ignore_errors=True)
