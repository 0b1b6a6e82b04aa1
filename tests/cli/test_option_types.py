"""Options keep their type: 1 is one of something and 1.0 all of it, from wherever the value comes."""

import subprocess
import sys
import typing

import pytest
import yaml
from lightning.pytorch import Trainer

from milkweed.cli import main
from milkweed.cli.build import build, exact, resolve
from milkweed.cli.options import split_overrides
from milkweed.cli.recipe import find_recipe
from milkweed.train.callbacks import read_rows
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
    "logger": ("true", "false"),
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
from milkweed.cli.recipe import find_recipe
name = "limit_train_batches"
print(repr(resolve(find_recipe("digits").values, [(f"trainer.{name}", 1)])["trainer"][name]))
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
