"""How the sentence encoder of a folder makes one vector of a text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from milkweed._files import inside, read_json_file

# Names that sentence-transformers has had for them.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
}


def pooling_of(folder: Path) -> str:
    """The pooling that a folder's ``modules.json`` leads to; the mean if there is none, or one of another kind."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        for module in read_json_file(folder / "modules.json"):
            if str(module["type"]).rpartition(".")[2] == "Pooling":
                return _named(read_json_file(inside(folder, module["path"]) / "config.json"))
    return "mean"


def _named(values: dict[str, Any]) -> str:
    named = values.get("pooling_mode")
    if isinstance(named, str) and named in _FLAGS.values():
        return named
    return next((pooling for flag, pooling in _FLAGS.items() if values.get(flag) is True), "mean")
