"""Files with a class each: a folder for every class, or a table that names files and classes."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from milkweed._files import UnsafeFileError, inside
from milkweed.data.base import SPLITS
from milkweed.data.splits import ALIASES, by_hash, check_classes, split_name
from milkweed.data.tables import ColumnError, iterate_rows


@dataclass(frozen=True)
class LabelledFiles:
    """The files of each split and the classes that they have."""

    class_names: tuple[str, ...]
    files: dict[str, list[Path]]
    labels: dict[str, list[int]]


def find_files(
    owner: str,
    root: Path,
    suffixes: Sequence[str],
    val: float,
    test: float,
    val_list: Path | None = None,
    test_list: Path | None = None,
    limit: int | None = None,
) -> LabelledFiles:
    """Find files by class and split.

    `root` is a folder `CLASS/*`, or `train/CLASS/*`, `val/CLASS/*`, `test/CLASS/*`, or a .csv with the columns `file`,
    `label` and, where the splits are known, `split`. Lists name the files of a split, a line each, by their paths below
    `root`. What nobody has split is split by a hash of the file's path. A limit takes so many files of each split, of
    all classes as they come.
    """
    if root.is_file():
        found = _of_table(root, suffixes)
    elif root.is_dir():
        found = _of_folder(root, suffixes)
    else:
        raise FileNotFoundError(
            f"data.root={root} does not exist; name a folder that holds a folder of files for each class, or a .csv "
            "with the columns file and label"
        )
    if not found:
        raise ValueError(f"data.root={root} holds no {_listed(suffixes)} files in a folder of their class")
    _by_lists(found, {"val": val_list, "test": test_list})
    _by_shares(found, val, test)
    by_split = {name: _some([each for each in found if each.split == name], limit) for name in SPLITS}
    for name, files in by_split.items():
        if not files:
            raise ValueError(f"{owner}: no file of data.root={root} is for the {name} split; name some, or more files")
    names = check_classes(owner, {name: [each.label for each in files] for name, files in by_split.items()})
    places = {name: place for place, name in enumerate(names)}
    return LabelledFiles(
        names,
        {name: [each.path for each in files] for name, files in by_split.items()},
        {name: [places[each.label] for each in files] for name, files in by_split.items()},
    )


def read_all(files: Sequence[Path], read: Callable[[Path], np.ndarray], what: str) -> list[np.ndarray]:
    """Read many files, and show how far that is where it takes a while."""
    from rich.progress import track

    return [read(file) for file in track(files, f"reading {len(files):,} {what}", transient=True)]


@dataclass
class _File:
    path: Path
    name: str  # below the root, with slashes
    label: str
    split: str | None


def _of_folder(root: Path, suffixes: Sequence[str]) -> list[_File]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    # A folder for each split, and in it one for each class: where all folders are called like splits.
    names = {folder.name.lower() for folder in folders}
    if names and "train" in names and names <= {*SPLITS, *ALIASES}:
        splits = [(split_name(folder.name, str(root)), folder) for folder in folders]
        return [file for split, folder in splits for file in _of_classes(root, folder, suffixes, split)]
    return list(_of_classes(root, root, suffixes, None))


def _of_classes(root: Path, folder: Path, suffixes: Sequence[str], split: str | None) -> list[_File]:
    found = []
    for each in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        for path in sorted(path for path in each.rglob("*") if path.suffix.lower() in suffixes):
            name = path.relative_to(root).as_posix()
            # A link may lead to any file of the computer.
            found.append(_File(inside(root, name), name, each.name, split))
    return found


def _of_table(table: Path, suffixes: Sequence[str]) -> list[_File]:
    if table.suffix not in {".csv", ".tsv"}:
        raise ValueError(f"data.root={table} is a file; expected a folder, or a .csv with the columns file and label")
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            header = next(csv.reader(opened, delimiter="\t" if table.suffix == ".tsv" else ","), [])
        columns = ("file", "label", "split") if "split" in header else ("file", "label")
        rows: list[dict[str, Any]] = list(iterate_rows(table, columns))
    except ColumnError as error:
        raise ValueError(f"{error}; a table of files has the columns file, label and, if you like, split") from error
    found = []
    for number, row in enumerate(rows, 2):
        where = f"{table}, line {number}"
        try:
            path = inside(table.parent, str(row["file"]))
        except UnsafeFileError as error:
            raise ValueError(f"{where}: {error}") from error
        if not path.is_file():
            raise FileNotFoundError(f"{where}: there is no file {path}")
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{where}: {path.name} is no {_listed(suffixes)} file")
        label, split = str(row["label"]).strip(), str(row.get("split", "")).strip()
        if not label:
            raise ValueError(f"{where}: the label is empty")
        found.append(_File(path, str(row["file"]), label, split_name(split, where) if split else None))
    return found


def _by_lists(found: list[_File], lists: dict[str, Path | None]) -> None:
    by_name = {file.name: file for file in found}
    for split, path in lists.items():
        if path is None:
            continue
        if not path.is_file():
            raise FileNotFoundError(f"data.{split}_list={path} does not exist; expected a text file, a path per line")
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            name = line.strip().replace("\\", "/")
            if name and name not in by_name:
                raise ValueError(f"{path}, line {number}: {name} is none of the {len(found)} files of data.root")
            if name:
                by_name[name].split = split
    if lists["test"] is not None and lists["val"] is not None:
        for file in found:
            file.split = file.split or "train"


def _by_shares(found: list[_File], val: float, test: float) -> None:
    """Split what has no split yet; a split that some files have already gets no others."""
    given = {file.split for file in found}
    left = [file for file in found if file.split is None]
    if not left and "val" not in given:
        left = [file for file in found if file.split == "train"]
    shares = {"val": 0.0 if "val" in given else val, "test": 0.0 if "test" in given else test}
    for file, split in zip(left, by_hash([file.name for file in left], **shares), strict=True):
        file.split = str(split)


def _some(files: list[_File], limit: int | None) -> list[_File]:
    """At most so many files, in their order: those with the smallest hashes, as the first are of one class."""
    if limit is None or limit >= len(files):
        return files
    last = sorted(sha256(file.name.encode()).digest() for file in files)[limit - 1]
    return [file for file in files if sha256(file.name.encode()).digest() <= last]


def _listed(suffixes: Sequence[str]) -> str:
    return ", ".join(suffixes)
