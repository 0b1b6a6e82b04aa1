"""JSON in which every key stands once: of two equal ones the parser would keep the last without a word."""

from __future__ import annotations

import json
from typing import Any


class DoubledKeyError(ValueError):
    """An object has one key twice.

    Args:
        key: The key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is there twice")
        self.key = key


def read(text: str | bytes) -> Any:
    """Read a text as JSON.

    Args:
        text: The text.

    Returns:
        The value.

    Raises:
        DoubledKeyError: An object has one key twice.
        json.JSONDecodeError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubledKeyError(next(key for key in keys if keys.count(key) > 1))
    return found
