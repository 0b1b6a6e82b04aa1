"""A run's config.yaml: a checksum in its last line shows whether all of it is there."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from milkweed._files import atomic_write
from milkweed.train.recipe.words import SECTIONS
from milkweed.train.strict_yaml import LARGEST_FILE, plain, read_yaml, write_yaml

MARK = "# checksum of the lines above: "
WAY_OUT = "restore it, or start a new run; environment.json beside it holds the command that made it"


class StoredConfig(dict[str, Any]):
    """The content of a config.yaml; `whole` if a checksum says so, which files of version 0.1.0 lack."""

    def __init__(self, content: dict[str, Any], path: Path, whole: bool) -> None:
        super().__init__(content)
        self.path, self.whole = path, whole


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write a resolved configuration."""
    text = write_yaml(config)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}{MARK}{_checksum(text)}\n", encoding="utf-8")


def read_config(path: Path) -> StoredConfig:
    """Read what `write_config` wrote; whether one without a checksum is complete, `check_complete` finds out."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} is damaged (it is larger than any configuration); {WAY_OUT}")
    try:
        body, checksum = _split(path.read_text(encoding="utf-8"), path)
        if checksum not in {None, _checksum(body)}:
            raise ValueError(
                f"{path} does not fit the checksum in its last line: it was changed by hand, or is damaged. Options "
                "are better changed when the run is resumed, e.g. trainer.max_epochs=20. To go on with the file as it "
                f"is, delete that line; else {WAY_OUT}"
            )
        content = plain(read_yaml(body))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {WAY_OUT}") from error
    missing = [name for name in SECTIONS if not isinstance(content, dict) or not isinstance(content.get(name), dict)]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; {WAY_OUT}")
    strange = [key for key in content if key not in ("seed", *SECTIONS)]
    if strange:
        raise ValueError(f"{path} is damaged: {strange[0]!r} is none of seed, {', '.join(SECTIONS)}; {WAY_OUT}")
    return StoredConfig(content, path, whole=checksum is not None)


def check_complete(stored: StoredConfig, resolved: dict[str, Any], given: Iterable[str] = ()) -> None:
    """Refuse a configuration without a checksum if options are missing, which would become their defaults.

    ``given`` are options that the command line sets anyway; a section's own name stands for all of it.
    """
    if stored.whole:
        return
    taken = set(given)
    missing = [
        name
        for name in _missing(stored, resolved)
        if not any(name == each or name.startswith(f"{each}.") for each in taken)
    ]
    if missing:
        options = " ".join(f"--{name} VALUE" for name in missing[:3])
        raise ValueError(
            f"{stored.path} is cut off, or lines were taken out: it lacks {', '.join(missing[:8])}"
            f"{' and more' if len(missing) > 8 else ''}, and defaults may not be what the run had. Give what it had "
            f"({options}{' …' if len(missing) > 3 else ''}), or {WAY_OUT}"
        )


def _missing(stored: Any, resolved: Any, prefix: str = "") -> list[str]:
    """Names that are only in the second of two nested values."""
    if isinstance(resolved, dict) and isinstance(stored, dict):
        found = []
        for key, value in resolved.items():
            name = prefix if key == "init_args" else f"{prefix}.{key}".removeprefix(".")
            found += _missing(stored[key], value, name) if key in stored else _names(value, name)
        return found
    if isinstance(resolved, list) and isinstance(stored, list):
        together = zip(stored, resolved, strict=False)
        return [name for place, pair in enumerate(together) for name in _missing(*pair, f"{prefix}.{place}")]
    return []


def _names(value: Any, name: str) -> list[str]:
    """Names of all options in a value, which counts as one if it holds none."""
    if not isinstance(value, dict) or not value:
        return [name]
    inner = value.get("init_args") or {} if "class_path" in value else value
    return [each for key, item in inner.items() for each in _names(item, f"{name}.{key}")] or [name]


def _checksum(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def _split(text: str, path: Path) -> tuple[str, str | None]:
    """The YAML, and the checksum if there is a whole one."""
    body, _, last = text.removesuffix("\n").rpartition("\n")
    body += "\n"
    found = re.fullmatch(rf"{re.escape(MARK)}(sha256 [0-9a-f]{{64}})", last)
    if found:
        return body, found[1]
    if MARK in text and not last.startswith(MARK):
        raise ValueError(
            f"{path} goes on after its checksum: lines were added by hand, or it is damaged. Delete the line that "
            f"begins with '{MARK.strip()}' to go on with the file as it is; else {WAY_OUT}"
        )
    # A key without a value is never written: it has lost the lines below it.
    if text.endswith("\n") and not last.rstrip().endswith(":"):
        return text, None
    if last.startswith("#"):  # cut off in the checksum, when all the rest was there
        return body, None
    raise ValueError(f"{path} is cut off in the line {last!r}; if that line is whole, end it; else {WAY_OUT}")
