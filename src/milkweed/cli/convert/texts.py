"""Texts to calibrate on, from a file with one on each line."""

from collections.abc import Iterator
from pathlib import Path

from milkweed.cli.errors import UsageError


def read_texts(path: Path, most: int) -> list[str]:
    """Read the lines of a file that are not blank, evenly spread over it if there are too many.

    Args:
        path: The file, UTF-8.
        most: How many at most.

    Returns:
        The texts.

    Raises:
        UsageError: There is no such file, it holds no text, or something else than text.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--calibrate {path} {state}; expected a text file with one text per line")
    try:
        count = sum(1 for _ in _lines(path))
        if not count:
            raise UsageError(f"--calibrate {path} is empty; expected one text per line, a few hundred or more")
        chosen = {index * count // most for index in range(most)} if count > most else range(count)
        return [line for index, line in enumerate(_lines(path)) if index in chosen]
    except UnicodeDecodeError as error:
        raise UsageError(f"--calibrate {path} is no UTF-8 text; expected one text per line") from error


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if "\0" in line:
                raise UsageError(f"--calibrate {path} holds binary data; expected a text file with one text per line")
            if line.strip():
                yield line.strip()
