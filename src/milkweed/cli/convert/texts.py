"""Texts to calibrate on, from a file with one on each line."""

import csv
import json
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from milkweed._suggest import UsageError

TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = {".jsonl", ".ndjson"}
NO_TEXT = {".json", ".parquet", ".arrow", ".xlsx", ".pdf", ".docx", ".html", ".xml"}


def read_texts(path: Path, most: int) -> list[str]:
    """Read the lines of a file that are not blank, evenly spread over it if there are too many."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--calibrate {path} {state}; expected a text file with one text per line")
    try:
        _check_kind(path)
        count = sum(1 for _ in _lines(path))
        if not count:
            raise UsageError(f"--calibrate {path} is empty; expected one text per line, a few hundred or more")
        chosen = {index * count // most for index in range(most)} if count > most else range(count)
        return [line for index, line in enumerate(_lines(path)) if index in chosen]
    except UnicodeDecodeError as error:
        raise UsageError(f"--calibrate {path} is no UTF-8 text; expected one text per line") from error


def _check_kind(path: Path) -> None:
    """Refuse files whose lines are records, not texts: a model would be calibrated on commas and brackets."""
    kind, first = path.suffix.lower(), next(_lines(path), "")
    expected = "expected a text file with one text per line"
    if kind in TABLES:
        columns = next(csv.reader([first], delimiter=TABLES[kind]), [])
        options = "" if TABLES[kind] == "," else f", delimiter={json.dumps(TABLES[kind])}"
        command = _write_texts("csv", f"csv.DictReader(FILE{options})", path, [*columns, "COLUMN"][0])
        found = f"a table, with the first row {textwrap.shorten(', '.join(columns), 100)}"
        raise UsageError(f"--calibrate {path} is {found}; {expected}. To make one of a column: {command}")
    fields = _text_fields(first)
    if kind in JSON_LINES or fields:
        command = _write_texts("json", "map(json.loads, FILE)", path, [*fields, "FIELD"][0])
        found = f"JSON, a record per line with the texts {textwrap.shorten(', '.join(fields) or 'none', 100)}"
        raise UsageError(f"--calibrate {path} holds {found}; {expected}. To make one of a field: {command}")
    if kind in NO_TEXT:
        raise UsageError(f"--calibrate {path} is a {kind} file; {expected}; if it is one, name it {path.stem}.txt")


def _text_fields(line: str) -> list[str]:
    """The names of the texts in a JSON object; none if a line is something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return [name for name, text in value.items() if isinstance(text, str)] if isinstance(value, dict) else []


def _write_texts(module: str, rows: str, path: Path, name: str) -> str:
    """A command that writes one field of every row as a line."""
    file = f'open({json.dumps(str(path), ensure_ascii=False)}, encoding="utf-8-sig")'
    text = f"row[{json.dumps(name, ensure_ascii=False)}]"
    code = f'import {module}; [print(" ".join({text}.split())) for row in {rows.replace("FILE", file)}]'
    return f"python -c {shlex.quote(code)} > texts.txt"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if "\0" in line:
                raise UsageError(f"--calibrate {path} holds binary data; expected a text file with one text per line")
            if line.strip():
                yield line.strip()
