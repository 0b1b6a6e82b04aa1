"""What docstrings in Google's style say about arguments, which is what helps show."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_HEADING = re.compile(r"(\S.*):")
_ENTRY = re.compile(r"    \*{0,2}(\w+)(?: \(([^)]*)\))?:(.*)")


@dataclass
class Entry:
    """What a section of a docstring says about a name; `kind` is what stands in brackets behind it."""

    section: str
    name: str
    kind: str
    text: str


def summary(text: str) -> str:
    """What stands before the first section, on one line."""
    return " ".join(re.split(r"\n(?=\S.*:\n {4})", text.strip() + "\n")[0].split())


def entries(text: str) -> Iterator[Entry]:
    """All entries of all sections, in their order."""
    section, entry = "", None
    for line in text.splitlines():
        heading, begin = _HEADING.fullmatch(line), _ENTRY.fullmatch(line)
        if heading or begin:
            if entry:
                yield entry
            section = heading[1] if heading else section
            entry = Entry(section, begin[1], begin[2] or "", begin[3].strip()) if begin and section else None
        elif entry and line.startswith("     "):
            entry.text = f"{entry.text} {line.strip()}".strip()
    if entry:
        yield entry


def first_sentence(text: str) -> str:
    """A description on one line, without the marks of code and links."""
    flat = re.sub(r"\[`([^`]*)`\]\[[^\]]*\]|`+([^`]*)`+", r"\1\2", " ".join(text.split()))
    return flat.partition(". ")[0].rstrip(".")
