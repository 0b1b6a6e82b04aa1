"""The table of a recipe's options is made once, and made anew when it is missing, old or damaged."""

import json
import os
import subprocess
import sys

import pytest

from milkweed.cli import table
from milkweed.cli.recipe import find_recipe, read_recipe, shipped_recipes

ROWS = [("seed", "0", "int", "Decides it"), ("model.d_model", "64", "int", "")]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """How often a table was made, in a process that has imported nothing yet."""
    found = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "make_rows", lambda values: found.append(values) or ROWS)
    monkeypatch.delitem(sys.modules, "milkweed.nn", raising=False)
    return found


def test_it_is_made_once_for_each_recipe_and_version(made, tmp_path, monkeypatch):
    recipe = find_recipe("digits")
    assert [table.option_rows(recipe) for _ in range(3)] == [ROWS] * 3
    assert len(made) == 1
    table.option_rows(find_recipe("smnist"))
    assert len(made) == 2
    (tmp_path / "digits.yaml").write_text(shipped_recipes()["digits"].read_text())
    table.option_rows(find_recipe(str(tmp_path / "digits.yaml")))
    assert len(made) == 3
    monkeypatch.setattr(table.metadata, "version", lambda package: "99")
    table.option_rows(recipe)
    assert len(made) == 4
    assert len(list((tmp_path / "cache" / "milkweed").iterdir())) == 3


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 1}', "rows", "short", "\0"])
def test_a_damaged_one_is_made_anew(content, made, tmp_path):
    recipe = find_recipe("digits")
    table.option_rows(recipe)
    (file,) = (tmp_path / "cache" / "milkweed").iterdir()
    whole = json.loads(file.read_text())
    broken = {"rows": whole | {"rows": [["seed", 1, 2, 3]]}, "short": whole | {"rows": [["seed"]]}}.get(content)
    file.write_text(json.dumps(broken) if broken else content)
    assert table.option_rows(recipe) == ROWS
    assert len(made) == 2
    assert json.loads(file.read_text()) == whole


def test_where_nothing_can_be_written_it_is_made_each_time(made, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert [table.option_rows(find_recipe("digits")) for _ in range(2)] == [ROWS] * 2
    assert len(made) == 2
    assert (tmp_path / "cache").read_text() == "a file"


def test_classes_of_the_users_own_are_looked_up_each_time(made, tmp_path, monkeypatch):
    text = shipped_recipes()["digits"].read_text().replace("SequenceModel", "mine.Net")
    (tmp_path / "mine.yaml").write_text(text)
    for _ in range(2):
        table.option_rows(read_recipe(tmp_path / "mine.yaml"))
    monkeypatch.setitem(sys.modules, "milkweed.nn", sys)  # which a module imports that registers a class
    table.option_rows(find_recipe("digits"))
    assert len(made) == 3
    assert not (tmp_path / "cache").exists()


def test_the_second_help_is_fast_and_the_same(tmp_path):
    code = """
import sys, time
from milkweed.cli import main
assert main(["train", "digits", "--help"]) == 0
assert main(["train", "digits", "--lr", "1"]) == 2
print(time.process_time(), "torch" in sys.modules)
"""
    shown, seconds = [], []
    for heavy in (True, False):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "120"},
        )
        *lines, last = done.stdout.splitlines()
        assert last.split()[1] == str(heavy)
        assert "did you mean --task.lr?" in done.stderr
        shown.append(lines)
        seconds.append(float(last.split()[0]))
    assert shown[0] == shown[1]
    assert any("--model.layer.d_state" in line for line in shown[0])
    assert seconds[1] < 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_the_table_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "options.json")
    assert table._read(tmp_path / "options.json", "key") is None
