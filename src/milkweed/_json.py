"""JSON in which every key stands once and texts are whole: what the parser alone would accept is refused."""

from __future__ import annotations

import json
import re
from typing import Any

# One half of a character, which no text holds; in a file it can only stand as an escape.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class DoubledKeyError(ValueError):
    """An object has one key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is there twice")
        self.key = key


def read(text: str | bytes) -> Any:
    """Read a text as JSON; refused are doubled keys, deep nesting, numbers of many digits, and half characters."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
        if _HALF.search(text if isinstance(text, str) else text.decode()):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise json.JSONDecodeError(f"{half} is one half of a character, without the other", "", 0) from None
    except (DoubledKeyError, json.JSONDecodeError):
        raise
    except ValueError:  # Python's limit for whole numbers
        raise json.JSONDecodeError("a number has too many digits", "", 0) from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubledKeyError(next(key for key in keys if keys.count(key) > 1))
    return found
