"""What the site is made of: docstrings and scripts in Markdown, and the marks between them."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from markdown_texts import inline, references, to_gallery, to_rst  # noqa: E402


def _documented():
    """Full name to docstring of all that the reference shows."""
    pytest.importorskip("transformers")
    shown = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name, without in re.findall(r"automodule:: (\S+)\n(?:   :exclude-members: (.*)\n)?", page.read_text()):
            module = importlib.import_module(name)
            shown[name] = inspect.getdoc(module)
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
            for key in set(getattr(module, "__all__", own)) - set(without.split(", ")):
                if not key.startswith("_") and not inspect.ismodule(value := getattr(module, key)):
                    shown[f"{name}.{key}"] = inspect.getdoc(value)
                    for member in vars(value) if isinstance(value, type) else ():
                        if not member.startswith("_"):
                            shown[f"{name}.{key}.{member}"] = inspect.getdoc(getattr(value, member))
    return shown


def _marks():
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if targets := references(text):
                    yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text, targets


def test_nothing_is_described_twice():
    """Sphinx warns of it, and then `make docs` fails."""
    pytest.importorskip("transformers")
    places = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name, without in re.findall(r"automodule:: (\S+)\n(?:   :exclude-members: (.*)\n)?", page.read_text()):
            module = importlib.import_module(name)
            for key in set(getattr(module, "__all__", ())) - set(without.split(", ")):
                value = getattr(module, key)
                if isinstance(value, type) or inspect.isfunction(value):
                    places.setdefault((value.__module__, value.__qualname__), []).append(name)
    assert len(places) > 100
    assert {key: names for key, names in places.items() if len(names) > 1} == {}


def test_every_mark_points_to_what_is_documented():
    documented = _documented()
    assert {target for _, _, targets in _marks() for target in targets} - set(documented) == set()


def test_every_mark_stands_where_it_is_rendered():
    # Elsewhere plain code says the same: `milkweed.nn.S4`.
    rendered = {text for text in _documented().values() if text}
    assert [place for place, text, _ in _marks() if text not in rendered] == []


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("see [`milkweed.nn.S4`][].", "see :py:documented:`milkweed.nn.S4 <milkweed.nn.S4>`."),
        ("[`explain`][milkweed.ops.explain] it", ":py:documented:`explain <milkweed.ops.explain>` it"),
        ("a mark [`explain`]\n[milkweed.ops.explain]", "a mark :py:documented:`explain <milkweed.ops.explain>`"),
        ("`a_` and ``b|c``, `d`s", "``a_`` and ``b|c``, ``d``\\ s"),
        ("x_ y* a|b \\", "x\\_ y\\* a\\|b \\\\"),
        ("snake_case and *more* or **most**", "snake_case and *more* or **most**"),
        ("[page](https://example.org/a_b)", "`page <https://example.org/a_b>`__"),
    ],
)
def test_inline_marks(markdown, rst):
    assert inline(markdown) == rst


def test_blocks_of_docstrings():
    text = """Summary of `x`.

    y = 2 * x_

| name | is |
| --- | --- |
| ``a`` | a \\| b* |

Args:
    x: A *number*.

Example:
    >>> mw.f(2) ** 2  # `x`_
    4*
""".splitlines()
    assert to_rst(text) == [
        "Summary of ``x``.",
        "",
        "::",
        "",
        "    y = 2 * x_",
        "",
        "",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - name",
        "     - is",
        "   * - ``a``",
        "     - a \\\\\\| b\\*",
        "",
        "",
        "Args:",
        "    x: A *number*.",
        "",
        "Example:",
        "    >>> mw.f(2) ** 2  # `x`_",
        "    4*",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_of_the_gallery_are_the_examples(path):
    original, written = ast.parse(path.read_text()), ast.parse(to_gallery(path.read_text(), "A title"))
    title, line = ast.get_docstring(written, clean=False).strip("\n").splitlines()[:2]
    assert line == "=" * len(title)
    start = 1 if ast.get_docstring(original) else 0
    assert [ast.dump(node) for node in original.body[start:]] == [ast.dump(node) for node in written.body[1:]]


def test_the_scripts_that_run_on_the_site_exist():
    quick = re.search(r"^QUICK = (.*)$", (ROOT / "docs" / "conf.py").read_text(), re.MULTILINE)[1]
    assert [name for name in ast.literal_eval(quick) if not (ROOT / "examples" / f"{name}.py").exists()] == []


def test_an_unknown_target_fails_the_build(tmp_path):
    pytest.importorskip("sphinx")
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'docs' / '_ext')!r}, {str(tmp_path)!r}]\n"
        "extensions = ['sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'markdown_texts']\n"
    )
    (tmp_path / "index.rst").write_text("Title\n=====\n\n.. automodule:: subject\n   :members:\n")
    for target, code in (("subject.known", 0), ("subject.unknown", 1)):
        (tmp_path / "subject.py").write_text(f'def known():\n    """See [`{target}`][]."""\n')
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", str(tmp_path), str(tmp_path / str(code))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert "reference target not found: subject.unknown" in done.stderr
