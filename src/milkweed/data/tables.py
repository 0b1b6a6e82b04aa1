"""Tables of texts and labels: files of rows, or whatever the library `datasets` reads."""

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from milkweed import _json
from milkweed._files import UnsafeFileError, inside, read_json_file

Row = dict[str, Any]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation"}
"""Other names of the splits, by those under which they are read."""


@dataclass(frozen=True)
class Table:
    """One split of a data set, whose rows can be read again and again without being held."""

    rows: Callable[[], Iterator[Row]]  # gives an iterator over them
    key: str  # names their content: changes if that does


class ColumnError(ValueError):
    """A table lacks a column that is needed, or holds something else in it; `there` are those that it has."""

    def __init__(self, message: str, there: Iterable[str]) -> None:
        super().__init__(message)
        self.there = frozenset(there)


def read_tables(
    source: str, fields: tuple[str, ...], config: str | None = None, texts: tuple[str, ...] = ()
) -> dict[str, list[Row]]:
    """Read the splits of a data set into memory; the arguments are those of `open_tables`."""
    return {split: list(table.rows()) for split, table in open_tables(source, fields, config, texts=texts).items()}


def open_tables(
    source: str,
    fields: tuple[str, ...],
    config: str | None = None,
    streaming: bool = False,
    texts: tuple[str, ...] = (),
) -> dict[str, Table]:
    """Find the splits of a data set.

    Files are .csv and .tsv with a header or with exactly the fields as their columns, .jsonl, or .json with a list of
    objects; a split's name is the file's, up to a dash or a dot (`train-00000-of-00002.jsonl`). Anything else, such as
    folders of Parquet or Arrow files and names on the Hugging Face hub, is read by `datasets`.
    """
    path = Path(source)
    if path.is_file():
        files = {"train": [path]}
        if not is_table(path):
            raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}, or be a folder of such files")
    else:
        files = files_by_split(path)
    check = partial(check_rows, fields=fields, texts=texts)
    if files:
        return {split: _open_files(sorted(group), fields, check) for split, group in files.items()}
    return {
        split: replace(table, rows=lambda split=split, table=table: check(f"{source}, split {split}", table.rows()))
        for split, table in _open_by_datasets(source, config, streaming).items()
    }


def _open_files(files: list[Path], fields: tuple[str, ...], check: Callable[..., Iterator[Row]]) -> Table:
    def rows() -> Iterator[Row]:
        return chain.from_iterable(check(str(file), iterate_rows(file, fields)) for file in files)

    # How the bytes are read decides beside them: as .csv or .tsv, and under which names where there is no header.
    return Table(rows, json.dumps([[_kind(file) for file in files], fields, content_key(*files)]))


def is_table(path: Path) -> bool:
    """Whether a file's name ends in one of `SUFFIXES`, in capitals or not."""
    return _kind(path) in SUFFIXES


def _kind(file: Path) -> str:
    return file.suffix.lower()


def content_key(*files: Path) -> str:
    """A name for what files hold, in hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest())
    return found.hexdigest()


def iterate_rows(file: Path, fields: tuple[str, ...]) -> Iterator[Row]:
    """Read one file row by row, holding one row at a time; a .json file is held whole."""
    try:
        # Lines end where their format says, not at separators that only Unicode knows.
        with file.open(encoding="utf-8-sig", newline="" if _kind(file) in {".csv", ".tsv"} else "\n") as lines:
            if _kind(file) in {".csv", ".tsv"}:
                yield from _table_rows(file, lines, fields)
            else:
                yield from _json_rows(file, lines, fields)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}; convert it") from error
    except csv.Error as error:
        raise ValueError(f"{file} cannot be read as a table: {error}; write long texts as .jsonl") from error


def _json_rows(file: Path, lines: TextIO, fields: tuple[str, ...]) -> Iterator[Row]:
    for row in _values_of_list(file, lines) if _kind(file) == ".json" else _values_of_lines(file, lines):
        if not isinstance(row, dict):
            raise ValueError(f"{file} must hold objects with the keys {', '.join(fields)}; it holds {row!r:.80}")
        yield row


def _values_of_list(file: Path, lines: TextIO) -> list[Any]:
    try:
        found = _json.read(lines.read())
    except _json.DoubledKeyError as error:
        raise ValueError(f"{file}: {error} in one object; drop or rename one") from error
    except json.JSONDecodeError as error:
        fix = "name it .jsonl if every line is an object" if error.msg == "Extra data" else "restore it"
        raise ValueError(f"{file} is not JSON: {error}; {fix}") from error
    if not isinstance(found, list):
        raise ValueError(f"{file} must hold a list of objects, [{{…}}, {{…}}]; it holds {found!r:.80}")
    return found


def _values_of_lines(file: Path, lines: TextIO) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _json.read(line)
            except _json.DoubledKeyError as error:
                raise ValueError(f"{file}, line {number}: {error}; drop or rename one") from error
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{file}, line {number} is not JSON: {error.msg} at column {error.colno}; mend or drop it"
                ) from error


def _table_rows(file: Path, lines: TextIO, fields: tuple[str, ...]) -> Iterator[Row]:
    # The tsv files in circulation have quotes that mean themselves.
    options: Any = {} if _kind(file) == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows = (line for line in csv.reader(lines, **options) if line)
    first = next(rows, None)
    if first is None:
        return
    header = _header(file, first, fields)
    if header is not first:
        rows = chain([first], rows)
    for number, line in enumerate(rows, 1):
        if len(line) != len(header):
            raise ValueError(
                f"{file}: row {number} has {len(line)} columns, expected {len(header)} ({', '.join(header)})"
            )
        yield dict(zip(header, line, strict=True))


def _header(file: Path, first: list[str], fields: tuple[str, ...]) -> list[str]:
    """The columns' names: the first row, or the fields if that is no header."""
    doubled = next((name for name in first if name and first.count(name) > 1), None)
    if set(fields) <= set(first):
        if doubled is not None:
            raise ColumnError(f"{file} has the column {doubled!r} twice; drop or rename one", first)
        return first
    near = _near_names(fields, first)
    if len(first) == len(fields) and not set(fields) & set(first) and not near:
        return list(fields)
    written = ", ".join(f"{name!r} as {field!r}" for field, name in near.items())
    raise ColumnError(
        f"{file} lacks {_listed(set(fields) - set(first))}: its first row is {', '.join(first)[:200]}; write "
        + (written or f"a header with the columns {', '.join(fields)}, or exactly these columns without a header"),
        first,
    )


def _near_names(fields: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """Columns that are spelled in another way, by the fields that they must be: in capitals, with blanks or marks."""
    bare = {_bare(name): name for name in there}
    missing = set(fields) - set(there)
    return {field: bare[_bare(field)] for field in sorted(missing) if _bare(field) in bare}


def _bare(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).casefold()  # an accent may be a character of its own
    return "".join(character for character in plain if character.isalnum())


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The tables of a folder by split; none if it is not a folder. A split in two forms is refused."""
    files: dict[str, list[Path]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        # Hidden files are what programs left, such as copies that are not finished.
        if (
            is_table(file)
            and not file.name.startswith(".")
            and file.name not in {"dataset_dict.json", "dataset_info.json", "state.json"}
        ):
            split = file.name.partition(".")[0].partition("-")[0]
            files.setdefault(SPLIT_NAMES.get(split, split), []).append(file)
    for split, group in files.items():
        kinds = {(re.split("[-.]", file.name)[0], _kind(file)): file.name for file in sorted(group, reverse=True)}
        if len(kinds) > 1:
            raise ValueError(
                f"{folder} has the split {split} twice, in {' and '.join(sorted(kinds.values()))}; move one away, or "
                f"name parts of one split {split}-0.csv, {split}-1.csv"
            )
    return files


def _open_by_datasets(source: str, config: str | None, streaming: bool) -> dict[str, Table]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        state = "holds no file that ends in" if Path(source).is_dir() else "is neither a file nor a folder of"
        raise ModuleNotFoundError(
            f"{source} {state} {', '.join(SUFFIXES)}; other sources are read by datasets, which is not installed: "
            'pip install "milkweed[data]"'
        ) from error
    folder = Path(source)
    if folder.is_dir():
        check_datasets_folder(folder)
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if saved:
            found, key = datasets.load_from_disk(source), None
        else:
            # Version 4 knows no scripts any more; before that they run if the environment says so, and this does not.
            trust: Any = {"trust_remote_code": False} if datasets.__version__.startswith(("2.", "3.")) else {}
            builder = datasets.load_dataset_builder(source, config, **trust)
            # On the hub the hash is that of a commit, which holds all parts of a data set.
            key = json.dumps([source, builder.config_id, str(builder.config.version), builder.hash])
            found = datasets.load_dataset(source, config, streaming=streaming, **trust)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{source} is neither a folder with data nor a data set that can be fetched from the Hugging Face hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
    splits = found if isinstance(found, dict) else {"train": found}
    splits = {name: _encoded(split, datasets) for name, split in splits.items()}
    return {
        SPLIT_NAMES.get(name, name): Table(lambda split=split: iter(split), f"{name} {key or split._fingerprint}")
        for name, split in splits.items()
    }


def _encoded(split: Any, datasets: Any) -> Any:
    """Leave recordings as the files that they are: `datasets` would read them by a library of its own."""
    sounds = [name for name, kind in (split.features or {}).items() if isinstance(kind, datasets.Audio)]
    for name in sounds:
        split = split.cast_column(name, datasets.Audio(decode=False))
    return split


def check_datasets_folder(folder: Path) -> None:
    """Refuse a folder for `datasets` whose files name files outside of it."""
    for state in (folder / "state.json", *folder.glob("*/state.json")):
        values = read_json_file(state) if state.is_file() else {}
        for entry in values.get("_data_files") or [] if isinstance(values, dict) else []:
            inside(state.parent, entry.get("filename") if isinstance(entry, dict) else entry)
    splits = read_json_file(folder / "dataset_dict.json") if (folder / "dataset_dict.json").is_file() else {}
    for split in splits.get("splits") or [] if isinstance(splits, dict) else []:
        inside(folder, split)
    card = folder / "README.md"
    if card.is_file():
        _check_card(folder, card)


def _check_card(folder: Path, card: Path) -> None:
    """Refuse a dataset card whose patterns of files lead elsewhere, to the network included."""
    text = card.read_text(encoding="utf-8", errors="replace")
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    named = re.findall(r"^[\s-]*(?:data_files|path|data_dir):(.*)$", head, re.MULTILINE)
    for name in [each for value in named for each in re.findall(r"[^\s'\",\[\]{}]+", value)]:
        if "://" in name or name.startswith(("/", "~")) or ".." in name.split("/"):
            raise UnsafeFileError(f"{card} names {name!r}, which leaves its folder; expected files of the folder")


def check_rows(where: str, rows: Iterable[Row], fields: tuple[str, ...], texts: tuple[str, ...] = ()) -> Iterator[Row]:
    """Refuse rows, as they are read, that do not fill all `fields`, or hold something else in `texts`."""
    for number, row in enumerate(rows, 1):
        missing = [field for field in fields if field not in row]
        if missing:
            near = "".join(f"; write {name!r} as {field!r}" for field, name in _near_names(fields, row).items())
            raise ColumnError(f"{where}: row {number} lacks {_listed(missing)}; it has {_listed(row)}{near}", row)
        for field in fields:
            if row[field] is None:
                raise ColumnError(f"{where}: row {number} has {field}=null; fill it, or drop the row", row)
        for field in texts:
            value = row.get(field)
            if value is not None and not isinstance(value, str):
                raise ColumnError(f"{where}: row {number} has {field}={value!r:.80}; expected text, in quotes", row)
        yield row


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
