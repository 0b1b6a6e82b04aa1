"""Tables of texts and labels: files of rows, or whatever the library `datasets` reads."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation"}
"""Other names of the splits, by those under which they are read."""


def read_tables(source: str, fields: tuple[str, ...], config: str | None = None) -> dict[str, list[Row]]:
    """Read the splits of a data set.

    Files are .csv and .tsv with a header or with exactly the fields as their columns, .jsonl, or .json with a list of
    objects; a split's name is the file's, up to a dash or a dot (`train-00000-of-00002.jsonl`). Anything else, such as
    folders of Parquet or Arrow files and names on the Hugging Face hub, is read by `datasets`.

    Args:
        source: A file, a folder of files, or the name of a data set on the hub.
        fields: Columns that are needed.
        config: Name of a part of the data set on the hub, e.g. `stsb`.

    Returns:
        Rows by the name of their split; a single file is the split `train`.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If a file is damaged or lacks a column.
    """
    path = Path(source)
    if path.is_file():
        files = {"train": [path]}
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}, or be a folder of such files")
    else:
        files = _files_by_split(path)
    if files:
        tables = {
            split: [row for file in sorted(group) for row in read_rows(file, fields)] for split, group in files.items()
        }
    else:
        tables = _read_by_datasets(source, config)
    for split, rows in tables.items():
        _check_columns(f"{source}, split {split}", rows, fields)
    return tables


def read_rows(file: Path, fields: tuple[str, ...]) -> list[Row]:
    """Read one file of rows.

    Args:
        file: The file.
        fields: The columns' names, if it is a table without a header.

    Returns:
        Its rows.

    Raises:
        ValueError: If it is no UTF-8, no JSON, or a row has too few or too many columns.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}; convert it") from error
    if file.suffix in {".csv", ".tsv"}:
        return _parse_table(file, text, fields)
    try:
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no {file.suffix[1:]}: {error}; restore it") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold objects with the keys {', '.join(fields)}")
    return rows


def _parse_table(file: Path, text: str, fields: tuple[str, ...]) -> list[Row]:
    # The tsv files in circulation have quotes that mean themselves.
    options: Any = {} if file.suffix == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    try:
        # Not splitlines(): texts may hold separators that only Unicode knows.
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), **options) if line]
    except csv.Error as error:
        raise ValueError(f"{file} cannot be read as a table: {error}; write long texts as .jsonl") from error
    if not lines:
        return []
    if set(fields) <= set(lines[0]):
        header, *lines = lines
    elif len(lines[0]) == len(fields) and not set(fields) & set(lines[0]):
        header = list(fields)
    else:
        raise ValueError(
            f"{file} lacks {_listed(set(fields) - set(lines[0]))}: its first row is {', '.join(lines[0])[:200]}; write "
            f"a header with the columns {', '.join(fields)}, or exactly these columns without a header"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise ValueError(
                f"{file}: row {number} has {len(line)} columns, expected {len(header)} ({', '.join(header)})"
            )
    return [dict(zip(header, line, strict=True)) for line in lines]


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.suffix in SUFFIXES and file.name not in {"dataset_dict.json", "dataset_info.json", "state.json"}:
            split = file.name.partition(".")[0].partition("-")[0]
            files.setdefault(SPLIT_NAMES.get(split, split), []).append(file)
    return files


def _read_by_datasets(source: str, config: str | None) -> dict[str, list[Row]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        state = "holds no file that ends in" if Path(source).is_dir() else "is neither a file nor a folder of"
        raise ModuleNotFoundError(
            f"{source} {state} {', '.join(SUFFIXES)}; other sources are read by datasets, which is not installed: "
            'pip install "milkweed[data]"'
        ) from error
    folder = Path(source)
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        found = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, config)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{source} is neither a folder with data nor a data set that can be fetched from the Hugging Face hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
    splits = found if isinstance(found, dict) else {"train": found}
    return {SPLIT_NAMES.get(name, name): list(split) for name, split in splits.items()}


def _check_columns(where: str, rows: Iterable[Row], fields: tuple[str, ...]) -> None:
    for number, row in enumerate(rows, 1):
        missing = [field for field in fields if row.get(field) is None]
        if missing:
            raise ValueError(f"{where}: row {number} lacks {_listed(missing)}; it has {_listed(row)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
