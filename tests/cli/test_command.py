"""Typed functions as commands."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Literal

import pytest

from milkweed._suggest import UsageError
from milkweed.cli import command
from milkweed.train.recipe.docs import entries, first_sentence, summary


def double(text):
    return 2 * int(text)


@pytest.fixture
def calls(monkeypatch):
    """A command `milkweed weave`, and what it was called with."""
    found = []

    def weave(
        cloth: str,
        second: str = "silk",
        *,
        rows: int = 3,
        share: float | None = 0.5,
        out: Path = Path("runs"),
        fast: bool = False,
        max_length: int = 7,
        keep: list[str] | None = None,
        kind: Literal["a", "b"] | None = None,
        twice: Annotated[int, double] | None = None,
    ) -> None:
        """Weave a cloth
        of two.

        More of it.

        Args:
            cloth (CLOTH-OR-ID): what is woven, 100%
            second: what else
            rows: so many,
                on two lines
            share: of it
            out (DIR): where to; default: nowhere

        of another kind: with more:
            fast: be fast
            max_length: at most
            keep (PATTERN): stays
            kind: which
            twice: two of it
        """
        found.append(locals())

    module = types.SimpleNamespace(weave=weave, EXAMPLE="  milkweed weave wool")
    monkeypatch.setattr(command.importlib, "import_module", lambda name: module)
    return found


DEFAULTS = {
    "cloth": "wool",
    "second": "silk",
    "rows": 3,
    "share": 0.5,
    "out": Path("runs"),
    "fast": False,
    "max_length": 7,
    "keep": None,
    "kind": None,
    "twice": None,
}


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("wool", {}),
        ("wool linen --rows 5 --share=1e-3", {"second": "linen", "rows": 5, "share": 1e-3}),
        ("--out x --fast wool", {"out": Path("x"), "fast": True}),
        ("wool --max-length 1", {"max_length": 1}),
        ("wool --max_length 1", {"max_length": 1}),
        ("wool --keep a --keep b --kind b --twice 4", {"keep": ["a", "b"], "kind": "b", "twice": 8}),
    ],
)
def test_a_signature_is_the_options(line, given, calls):
    command.run_command("weave", line.split())
    assert {key: value for key, value in calls[0].items() if key != "found"} == DEFAULTS | given


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: CLOTH-OR-ID; see milkweed weave --help"),
        ("wool --row 3", "unknown argument --row; did you mean --rows?"),
        ("wool --zzz", "unknown argument --zzz; see milkweed weave --help"),
        ("wool --rows x", "argument --rows: invalid int value: 'x'"),
        ("wool --kind c", "argument --kind: invalid choice: 'c'"),
        ("a b c", "unknown argument c"),
    ],
)
def test_refusals_name_what_was_typed(line, message, calls):
    with pytest.raises(UsageError) as caught:
        command.run_command("weave", line.split())
    assert message in str(caught.value)
    assert calls == []


def test_a_docstring_is_the_help(calls, capsys):
    with pytest.raises(SystemExit) as stop:
        command.run_command("weave", ["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "Weave a cloth of two. More of it.",
        "CLOTH-OR-ID what is woven, 100%",
        "SECOND what else; default: silk",
        "--rows ROWS so many, on two lines; default: 3",
        "--share SHARE of it; default: 0.5",
        "--out DIR where to; default: nowhere",
        "of another kind: with more: --fast be fast",
        "--max-length MAX_LENGTH at most; default: 7",
        "--kind {a,b} which",
        "example: milkweed weave wool",
    ):
        assert text in shown
    assert "--max_length" not in shown


def test_without_docstrings_all_options_are_there(monkeypatch, calls):
    monkeypatch.setattr(command.inspect, "getdoc", lambda function: None)
    command.run_command("weave", ["wool", "linen", "--rows", "5", "--fast", "--keep", "x"])
    assert calls[0]["second"] == "linen"
    assert (calls[0]["rows"], calls[0]["fast"], calls[0]["keep"]) == (5, True, ["x"])


@pytest.mark.parametrize("line", ["--name x --help digits", "digits --nmae --help", "-h digits"])
def test_help_finds_the_recipe(line, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(command, "print_recipe_options", found.append)
    command.run_command("train", line.split())
    command.run_command("train", ["--help"])
    assert found == ["digits"]


def test_entries_of_docstrings():
    text = "One\ntwo.\n\nArgs:\n    a: First. Second.\n    b (int): Of [`x.Y`][],\n        ``z``.\n\n"
    text += "Raises:\n    No: Way.\n"
    found = [(each.section, each.name, each.kind, first_sentence(each.text)) for each in entries(text)]
    assert found == [("Args", "a", "", "First"), ("Args", "b", "int", "Of x.Y, z"), ("Raises", "No", "", "Way")]
    assert summary(text) == "One two."


def test_the_first_commands_need_no_extra():
    code = """
import sys
for name in ("rich", "yaml", "jsonargparse", "lightning", "docstring_parser", "torch"):
    sys.modules[name] = None
from milkweed.cli import main
assert [main([each]) for each in ("--help", "--version", "recipes", "trian")] == [0, 0, 0, 2]
for line in (["train", "digits"], ["train", "digits", "--help"], ["demo"], ["evaluate", "."], ["inspect", "digits"]):
    assert main(line) == 2, line
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "digits-monarch " in done.stdout
    first, *others = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "did you mean 'train'?" in first
    assert len(others) == 5
    assert all('is not installed: pip install "milkweed[train]"' in line for line in others), others
