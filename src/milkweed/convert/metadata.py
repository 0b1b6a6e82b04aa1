"""Plain values in a file's metadata, checked against a pattern before they are used."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milkweed import _json

# Larger sizes are no features that a computer could hold.
_LARGEST = 2**31


def read_json(file: Path, metadata: Mapping[str, str], key: str, pattern: Any) -> Any:
    """Read one entry of a file's metadata that fits a pattern; an empty list or mapping if there is none."""
    # Patterns: str; int, from 1 on; float, finite; dict, any mapping; [pattern], a list; (pattern,), a list that is not
    # empty; {"key": pattern}, a mapping that has these keys; {str: pattern}, a mapping with any keys.
    if key not in metadata:
        return [] if isinstance(pattern, list) else {}
    try:
        value = _json.read(metadata[key])
    except _json.DoubledKeyError as error:
        raise ValueError(f"in the {key} in {file} {error}") from error
    except ValueError as error:
        raise ValueError(f"the {key} in {file} is not JSON: {error}") from error
    return check(value, pattern, key, file)


def check(value: Any, pattern: Any, where: str, file: Path | str) -> Any:
    """Give a value of a file that fits a pattern, and refuse another by where it stands."""
    expected = _misfit(value, pattern)
    if expected is not None:
        raise ValueError(f"the {where} in {file} must be {expected}; got {reprlib.repr(value)}")
    if isinstance(pattern, list | tuple):
        for index, each in enumerate(value):
            check(each, pattern[0], f"{where}[{index}]", file)
    elif isinstance(pattern, dict):
        for key in value if str in pattern else pattern:
            check(value[key], pattern.get(key, pattern.get(str)), f"{where}[{key!r}]", file)
    return value


def _misfit(value: Any, pattern: Any) -> str | None:
    """What was expected, if the value itself is something else."""
    if isinstance(pattern, tuple):
        return None if isinstance(value, list) and value else "a list of one or more"
    if isinstance(pattern, list):
        return None if isinstance(value, list) else "a list"
    if isinstance(pattern, dict) and str not in pattern:
        fits = isinstance(value, dict) and pattern.keys() <= value.keys()
        return None if fits else f"a mapping with {', '.join(pattern)}"
    if isinstance(pattern, dict) or pattern is dict:
        return None if isinstance(value, dict) else "a mapping"
    if pattern is str:
        return None if isinstance(value, str) else "a string"
    if pattern is int:
        fits = type(value) is int and 1 <= value <= _LARGEST
        return None if fits else f"a whole number from 1 to {_LARGEST}"
    return None if type(value) in {int, float} and abs(value) < math.inf else "a finite number"
