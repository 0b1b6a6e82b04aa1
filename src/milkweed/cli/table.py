"""The options of a recipe as a table for people, kept between calls: to make it, Lightning has to be imported."""

import hashlib
import inspect
import json
import os
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import milkweed
from milkweed._disk import DiskFullError
from milkweed._files import atomic_write, read_json_file
from milkweed.cli.recipe import Recipe

# Name, value, type and meaning of an option.
Row = tuple[str, str, str, str]
LARGEST_TABLE = 2**20


def print_options(console: Console, recipe: Recipe) -> None:
    """Print every option of a recipe with its value, type and meaning."""
    rows = option_rows(recipe)
    table = Table.grid(padding=(0, 2))
    # Names fold where a terminal is too narrow for them; rich would cut them.
    table.add_column(overflow="fold", width=min(max(len(row[0]) for row in rows) + 4, console.width // 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value, kind, meaning in rows:
        what = Text.assemble((kind, "green"), "; " if kind and meaning else "", meaning)
        table.add_row(Text(f"  --{name}"), Text(value, style="cyan"), what)
    console.print(f"\noptions of recipe [bold]{escape(recipe.name)}[/], with their values and types:", highlight=False)
    console.print(table, highlight=False)


def option_rows(recipe: Recipe) -> list[Row]:
    """All options of a recipe, from the cache if they have been asked for before."""
    key, file = _key(recipe), _cache_file(recipe)
    if key is not None:
        rows = _read(file, key)
        if rows is not None:
            return rows
    with Console(stderr=True).status(f"reading the options of {recipe.name}, which takes a few seconds once"):
        rows = make_rows(recipe.values)
    if key is not None:
        with suppress(OSError, DiskFullError), atomic_write(file) as temporary:
            temporary.write_text(json.dumps({"key": key, "rows": rows}), encoding="utf-8")
    return rows


def make_rows(values: dict[str, Any]) -> list[Row]:
    """All options of a recipe, by importing what they belong to."""
    from milkweed.cli.build import resolve
    from milkweed.train.recipe.schema import in_words, options_of

    config = resolve(values, [])
    schema = options_of(config)
    rows = []
    for name in schema.listed():
        option = schema[name]
        value = _value(config, name, option.default)
        shown = "" if value is None or value is inspect.Parameter.empty else str(value)
        rows.append((name, shown, "" if name in {"data", "model", "task"} else in_words(option.hint), option.meaning))
    return rows


def _value(config: dict[str, Any], name: str, default: Any) -> Any:
    """The value of an option in a resolved configuration; the default of one that is not written down."""
    place: Any = config
    for key in name.split("."):
        if isinstance(place, dict) and "class_path" in place:
            place = place.get("init_args") or {}
        if not isinstance(place, dict) or key not in place:
            return default
        place = place[key]
    return default if name in {"data", "model", "task"} else place


def _cache_file(recipe: Recipe) -> Path:
    """One file for each recipe, in the user's folder of caches."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "milkweed" / f"options-{_digest(str(Path(recipe.typed).absolute()))}.json"


def _key(recipe: Recipe) -> str | None:
    """What the table depends on: the recipe and all versions; None where code of the user's may have options.

    Files of this library count by size and time, as its version does not change while it is being worked on.
    """
    paths = [recipe.values[section].get("class_path") for section in ("data", "model", "task")]
    if "milkweed.nn" in sys.modules or not all(isinstance(path, str) and _own(path) for path in paths):
        return None
    folder = Path(milkweed.__file__).parent
    files = [(str(each.relative_to(folder)), each.stat()) for each in sorted(folder.rglob("*.py"))]
    versions = {name: _version(name) for name in ("lightning", "torch", "torchmetrics", "jsonargparse")}
    stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
    everything = [str(folder), milkweed.__version__, sys.version, versions, stamps, recipe.values]
    return _digest(json.dumps(everything, default=str))


def _own(path: str) -> bool:
    return "." not in path or path.startswith("milkweed.")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path, key: str) -> list[Row] | None:
    """The rows of a cache file; None if there is none, or it is of another version, or damaged."""
    if not file.is_file():  # a pipe would be waited for
        return None
    try:
        content = read_json_file(file, LARGEST_TABLE)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("rows"), list):
        return None
    rows = [tuple(row) for row in content["rows"] if isinstance(row, list) and len(row) == 4]
    whole = len(rows) == len(content["rows"]) and all(isinstance(cell, str) for row in rows for cell in row)
    return rows if whole and rows else None
