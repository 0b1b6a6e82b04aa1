"""Options keep their type: 1 is one of something and 1.0 all of it, from wherever the value comes."""

import inspect
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from milkweed._suggest import UsageError
from milkweed.cli import main
from milkweed.cli.build import resolve
from milkweed.cli.options import split_overrides
from milkweed.cli.recipe import find_recipe, read_recipe
from milkweed.tasks import Regression
from milkweed.train.callbacks import read_rows
from milkweed.train.recipe.build import build, exact
from milkweed.train.recipe.check import checked
from milkweed.train.run_folder import RunFolder

NUMBERS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
VALUES = {
    **dict.fromkeys(NUMBERS, ("0", "1", "2", "0.5", "1.0", "null")),
    "val_check_interval": ("1", "2", "0.5", "1.0"),
    "gradient_clip_val": ("0", "1", "1.0", "0.5", "null"),
    "devices": ("1", "2", "auto", "[0]", "-1", "'1'"),
    "deterministic": ("true", "false", "warn"),
    "precision": ("32", "'32'", "bf16-mixed", "64"),
    "num_sanity_val_steps": ("0", "1", "-1"),
    "logger": ("true", "false", "csv", "[csv, wandb]"),
    "benchmark": ("true", "false"),
}
# Each value once, one for every option at a time.
ROUNDS = [{name: texts[n] for name, texts in VALUES.items() if n < len(texts)} for n in range(6)]


def same(found, expected):
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("texts", ROUNDS, ids=range(6))
def test_command_line_recipe_and_stored_config_agree(texts, tmp_path):
    expected = {name: yaml.safe_load(text) for name, text in texts.items()}
    values = find_recipe("digits").values
    typed = resolve(values, split_overrides([f"--trainer.{name}={text}" for name, text in texts.items()])[1])
    written = resolve(values | {"trainer": values["trainer"] | expected}, [])
    if expected.get("precision") == "32":
        expected["precision"] = 32  # Lightning takes both, and the parser the number first
    for config in (typed, written):
        RunFolder(tmp_path).write_config(config)
        stored = RunFolder(tmp_path).read_config()
        again = resolve(stored, [])
        built = build(again).trainer_options
        for name, value in expected.items():
            for found in (config["trainer"], stored["trainer"], again["trainer"], built):
                assert same(found[name], value), name


@pytest.mark.parametrize("parts", [(float, int, type(None)), (int, float, type(None)), (str, float, bool, int)])
def test_whole_numbers_are_tried_first_however_a_type_is_written(parts):
    found = typing.get_args(exact(typing.Union[parts]))  # noqa: UP007
    assert [part for part in found if part in {bool, int, float}] == [p for p in (bool, int, float) if p in parts]
    assert set(found) == set(parts)


def test_other_types_are_left_alone():
    for parameter in ("accelerator", "logger", "callbacks", "max_epochs"):
        hint = typing.get_type_hints(Trainer.__init__).get(parameter)
        assert exact(hint) is hint


SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--data.batch_size", "32", "--data.limit", "96"),
    *("--trainer.max_epochs", "2"),
]


@pytest.mark.parametrize(("value", "steps"), [("1", 1), ("2", 2), ("1.0", 3), ("0.7", 2)])
def test_so_many_batches_are_trained(value, steps, tmp_path):
    out = str(tmp_path)
    train = ["train", "digits", "--out", out, *SMALL, "--name", "a"]
    assert main([*train, "--trainer.limit_train_batches", value, "--trainer.limit_val_batches", value]) == 0
    assert [row["step"] for row in read_rows(tmp_path / "a" / "metrics.csv")] == [steps, 2 * steps]
    resume = ["train", "digits", "--out", out, "--name", "a", "--resume", "auto", "--trainer.max_epochs", "3"]
    assert main(resume) == 0
    assert [row["step"] for row in read_rows(tmp_path / "a" / "metrics.csv")] == [steps, 2 * steps, 3 * steps]


def test_the_order_in_which_types_were_made_does_not_matter():
    code = """
from typing import Optional, Union
Optional[Union[float, int]]  # typing gives this one to whoever asks for the other
from milkweed.cli.build import resolve
from milkweed.train.recipe.check import checked
from milkweed.cli.recipe import find_recipe
name = "limit_train_batches"
print(repr(resolve(find_recipe("digits").values, [(f"trainer.{name}", 1)])["trainer"][name]))
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


class Kinds(Regression):
    """A task with an option of every kind."""

    def __init__(
        self,
        text: str = "a",
        text_or_null: str | None = "a",
        path: Path = Path("a"),
        whole: int = 1,
        whole_or_null: int | None = 1,
        number: float = 0.25,
        either: int | float | None = 0.25,
        truth: bool = False,
        choice: typing.Literal["1e3", "true", "007"] = "1e3",
        texts: list[str] | None = None,
        wholes: Sequence[int] | None = None,
        free: Mapping[str, typing.Any] | None = None,
    ) -> None:
        super().__init__()


REFUSED = object()
PLAIN = ("1e3", "null", "true", "1_000", "12:30:00", "0x10", "007", "010", "no", "2024-01-01", "-1", ".5", "'1e3'", "x")
NUMBERS_READ = {"1e3": 1000.0, "1_000": 1000, "0x10": 16, "007": 7, "010": 10, "-1": -1, ".5": 0.5}


def expected_of(kind, text):
    """What an option of a kind holds for a text."""
    unquoted, number = text.strip("'"), NUMBERS_READ.get(text, NUMBERS_READ.get(text.strip("'"), REFUSED))
    whole = number if type(number) is int else REFUSED
    free = {"null": None, "true": True, "no": False, "'1e3'": "1e3"}.get(text, NUMBERS_READ.get(text, text))
    null = None if text == "null" else REFUSED
    return {
        "text": None if text == "null" else unquoted,
        "text_or_null": None if text == "null" else unquoted,
        "path": unquoted if text != "null" else REFUSED,
        "whole": whole,
        "whole_or_null": null if null is None else whole,
        "number": REFUSED if number is REFUSED else float(number),
        "either": null if null is None else number,
        "truth": {"true": True, "no": False}.get(text, REFUSED),
        "choice": unquoted if unquoted in {"1e3", "true", "007"} else REFUSED,
        "texts": REFUSED if text == "null" else [unquoted],
        "wholes": REFUSED if whole is REFUSED else [whole],
        "free": {"x": free},
    }[kind]


KINDS = tuple(inspect.signature(Kinds.__init__).parameters)[1:]


def written(kind, text):
    return {"texts": f"[{text}]", "wholes": f"[{text}]", "free": f"{{x: {text}}}"}.get(kind, text)


def recipe_of(lines, path):
    text = f"data: {{class_path: Delay}}\nmodel: {{class_path: LinearMemory}}\ntask:\n  class_path: {__name__}.Kinds\n"
    path.write_text(f"{text}  init_args:\n{lines or '    {}'}\ntrainer: {{}}\n")
    return read_recipe(path).values


@pytest.mark.parametrize("text", PLAIN)
def test_every_kind_of_option_reads_a_text_the_same_way_from_everywhere(text, tmp_path):
    taken = {kind: expected_of(kind, text) for kind in KINDS if expected_of(kind, text) is not REFUSED}
    lines = "\n".join(f"    {kind}: {written(kind, text)}" for kind in taken)
    from_recipe = resolve(recipe_of(lines, tmp_path / "a.yaml"), [])
    plain = recipe_of("", tmp_path / "b.yaml")
    typed = split_overrides([f"--task.{kind}={written(kind, text)}" for kind in taken])[1]
    from_line = resolve(plain, typed)
    RunFolder(tmp_path).write_config(from_line)
    stored = RunFolder(tmp_path).read_config(trust=True)
    for config in (from_recipe, from_line, stored, resolve(stored, [])):
        found = {kind: config["task"]["init_args"][kind] for kind in taken}
        assert found == taken
        assert [type(value) for value in found.values()] == [type(value) for value in taken.values()]
    for kind in set(KINDS) - taken.keys():
        shown = rf"--task\.{kind}.*does not fit; expected"
        with pytest.raises(UsageError, match=shown):
            checked(recipe_of(f"    {kind}: {written(kind, text)}", tmp_path / "c.yaml"))
        with pytest.raises(UsageError, match=shown):
            resolve(plain, split_overrides([f"--task.{kind}", written(kind, text)])[1])


@pytest.mark.parametrize("text", ["run #1", " padded ", "", "a\tb", " "])
def test_typed_texts_are_taken_as_they_are(text, tmp_path):
    plain = recipe_of("", tmp_path / "a.yaml")
    options = ("text", "text_or_null", "path", "free.x")
    for words in ([f"--task.{kind}={text}" for kind in options], [w for o in options for w in (f"--task.{o}", text)]):
        config = resolve(plain, split_overrides(words)[1])
        RunFolder(tmp_path).write_config(config)
        found = RunFolder(tmp_path).read_config(trust=True)["task"]["init_args"]
        assert [found["text"], found["text_or_null"], found["free"]["x"]] == [text, text, text]
        assert found["path"] == str(Path(text))
    with pytest.raises(UsageError, match=r"--task\.whole_or_null=.* does not fit"):
        resolve(plain, split_overrides(["--task.whole_or_null", text])[1])


def test_a_text_may_begin_like_a_comment(tmp_path):
    config = resolve(recipe_of("", tmp_path / "a.yaml"), split_overrides(["--task.text", "# x"])[1])
    assert config["task"]["init_args"]["text"] == "# x"
