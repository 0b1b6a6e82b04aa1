"""Docstrings and example scripts are written in Markdown; Sphinx reads them as reStructuredText.

Of Markdown they use, and this knows: code, emphasis, links, tables, headings, indented blocks, and the two marks for
what is documented elsewhere, [`milkweed.nn.S4`][] and [`the layer`][milkweed.nn.S4]. A target that no page documents is
a warning, and so an error of `make docs`.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

ROLE = "documented"
_GALLERY = "Examples\n========\n\nScripts that read as prose and assert what they say.\n"
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Source|Example|Attributes|Note|Warning):$")
REFERENCE = re.compile(r"\[`(?P<text>[^`]+)`\]\s*\[(?P<target>[^\]\s]*)\]")
INLINE = re.compile(
    rf"(?P<reference>{REFERENCE.pattern})"
    r"|``(?P<double>.+?)``"
    r"|`(?P<code>[^`]+)`"
    r"|\[(?P<label>[^\]`]+)\]\((?P<url>[^)\s]+)\)"
    rf"|(?P<emphasis>(?<![\w*])(?P<stars>\*{{1,2}})(?=[^\s*])[^*\n]+?(?<=[^\s*])(?P=stars)(?![\w*]))"
    r"|(?P<special>[\\*|]|_(?!\w))",
    re.DOTALL,
)
RULE = re.compile(r"^\s*\|( *:?-+:? *\|)+\s*$")


def references(text: str) -> list[str]:
    """List what a docstring refers to by a mark."""
    return [match["target"] or match["text"] for match in REFERENCE.finditer(text)]


def inline(text: str) -> str:
    """Write one stretch of Markdown text as reStructuredText."""

    def written(match: re.Match[str]) -> str:
        if match["reference"]:
            label, target = match["text"], match["target"] or match["text"]
            role = f":py:{ROLE}:`{label} <{target}>`"
        elif match["double"] or match["code"]:
            role = f"``{(match['double'] or match['code']).strip()}``"
        elif match["label"]:
            role = f"`{match['label']} <{match['url']}>`__"
        elif match["emphasis"]:
            return match["emphasis"]
        else:
            return "\\" + match["special"]
        # Marks end at a space or a point; letters that follow at once need an escaped space, which is not printed.
        before, after = text[: match.start()][-1:] or " ", text[match.end() :][:1] or " "
        return ("" if _apart(before) else "\\ ") + role + ("" if _apart(after) else "\\ ")

    return INLINE.sub(written, text)


def _apart(character: str) -> bool:
    """Whether a mark may begin or end beside a character."""
    return character.isspace() or character in "'\"()[]{}<>-/:.,;!?–—…"


def to_rst(lines: Iterable[str]) -> list[str]:
    """Write a docstring or the text of a script as reStructuredText, paragraph by paragraph."""
    source, written, paragraph = list(lines), [], []
    base = place = 0
    while place < len(source):
        line = source[place]
        if SECTION.match(line):
            base = 4
        elif line.strip() and not line.startswith(" "):
            base = 0
        stop, block = _block(source, place, base)
        if block is None:
            paragraph.append(line)
        if paragraph and (block is not None or stop == len(source)):
            written += inline("\n".join(paragraph)).split("\n")
            paragraph.clear()
        written += block or []
        place = stop
    return written


def _block(source: list[str], place: int, base: int) -> tuple[int, list[str] | None]:
    """Where the block that begins on a line ends, and what to write for it; None for a line of a paragraph."""
    line, stop = source[place], place + 1
    text, margin = line.lstrip(), " " * (base + 4)
    if not text:
        return stop, [""]
    if text.startswith(">>> "):
        while stop < len(source) and source[stop].strip():
            stop += 1
        return stop, source[place:stop]
    if text.startswith("|") and stop < len(source) and RULE.match(source[stop]):
        while stop < len(source) and source[stop].lstrip().startswith("|"):
            stop += 1
        return stop, _table(source[place:stop], line[: -len(text)])
    if line.startswith(margin) and _begins_block(source[:place], base):
        while stop < len(source) and (not source[stop].strip() or source[stop].startswith(margin)):
            stop += 1
        return stop, [" " * base + "::", "", *source[place:stop], ""]
    if heading := re.match(r"(#{1,3}) (.+)", line):
        title = inline(heading[2])
        return stop, [title, "=-~"[len(heading[1]) - 1] * len(title)]
    return stop, None


def _begins_block(above: list[str], base: int) -> bool:
    """Whether an indented line is a block of its own: after an empty line, and not the rest of a list's item."""
    if not above or above[-1].strip():
        return False
    last = next((line for line in reversed(above) if line.strip()), "")
    return len(last) - len(last.lstrip()) <= base and not last.lstrip().startswith(("- ", "* "))


def _table(rows: list[str], indent: str) -> list[str]:
    lines = [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in (rows[0], *rows[2:]):
        for index, cell in enumerate(row.strip().strip("|").split(" | ")):
            lines.append(f"{indent}   {'* -' if index == 0 else '  -'} {inline(cell.strip())}")
    return ["", *lines, ""]


def gallery_scripts(folder: Path, out: Path) -> None:
    """Write the scripts of a folder as sphinx-gallery reads them, in place of those written before."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "GALLERY_HEADER.rst").write_text(_GALLERY)
    for path in folder.glob("*.py"):
        title = path.stem.replace("_", " ").capitalize()
        (out / path.name).write_text(to_gallery(path.read_text(), title))


def to_gallery(script: str, title: str) -> str:
    """Write a script as sphinx-gallery reads it: cells of text as docstring and comments; a title where it has none."""
    if docstring := re.match(r'"""(.*?)"""\n', script, re.DOTALL):
        text = "\n".join(to_rst([f"# {title}", "", *docstring[1].splitlines()])).rstrip("\n")
        return f'r"""\n{text}\n"""\n' + script[docstring.end() :]
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if kind.strip() != "[markdown]":
            parts.append("# %%\n\n" + body.strip("\n"))
            continue
        comments = re.match(r"(?:#.*\n?)*", body)[0]
        text = "\n".join(to_rst(line[2:] for line in comments.splitlines())).strip("\n")
        if not parts:
            parts.append(f'r"""\n{text}\n"""')
        else:
            parts.append("\n".join(["# %%", *(f"# {line}".rstrip() for line in text.splitlines())]))
        if rest := body[len(comments) :].strip("\n"):
            parts.append(rest)
    return "\n\n".join(parts) + "\n"


def _process(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def _skip(app: object, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples: their class describes them."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: object) -> dict[str, bool]:
    """Let Sphinx read docstrings through `to_rst`, before napoleon reads their sections."""
    from sphinx.domains.python import PyXRefRole

    app.add_role_to_domain("py", ROLE, PyXRefRole(warn_dangling=True))
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
