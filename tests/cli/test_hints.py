"""Natural mistakes are answered by what was meant, and what is recommended works."""

import re
import shlex
from pathlib import Path

import pytest

from milkweed.cli import MEANT_COMMANDS, main
from milkweed.cli.build import resolve
from milkweed.cli.options import split_overrides
from milkweed.cli.recipe import find_recipe, shipped_recipes
from milkweed.train.recipe import words
from milkweed.train.recipe.build import build
from milkweed.train.recipe.schema import options_of


def refused(text, capsys):
    assert main(shlex.split(text)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.split())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train digits --lr 1", "unknown argument --lr; did you mean --task.lr?"),
        ("train digits --lr=1", "did you mean --task.lr?"),
        ("train --lr 1", "unknown argument --lr; did you mean --task.lr?"),
        ("train digits --epochs 3", "did you mean --trainer.max_epochs?"),
        ("train digits --gpus 2", "did you mean --trainer.devices?"),
        ("train digits --batch-size 2", "did you mean --data.batch_size?"),
        ("train digits --d_state 2", "did you mean --model.layer.d_state?"),
        ("train digits --d_modle 2", "did you mean --model.d_model?"),
        ("train digits --label-smoothing 0.1", "did you mean --task.label_smoothing?"),
        ("train digits --output runs2", "did you mean --out?"),
        ("train digits --seeds 3", "did you mean --seed?"),
        ("inspect digits --lr 1", "did you mean --task.lr?"),
        ("evaluate runs/digits --batch_size 1", "did you mean --data.batch_size?"),
        ("train digits --trainer.epochs 3", "did you mean --trainer.max_epochs?"),
        ("train digits --trainer.gpus 3", "did you mean --trainer.devices?"),
        ("train digits --model.lr 3", "did you mean --task.lr?"),
        ("train digits --model.layer s4", "use --model.layer.name s4"),
        ("train digits-mixer --model.linear monarch", "use --model.linear.name monarch"),
        ("train digits --trainer.logger tensorbord", "did you mean tensorboard?"),
        ("train digits --trainer.logger [csv,wandbb]", "did you mean wandb?"),
        ("train digits --trainer.logger mlflow", "{class_path: lightning.pytorch.loggers.MLFlowLogger}"),
        ("train digits --trainer.callbacks early", "[{class_path: lightning.pytorch.callbacks.EarlyStopping"),
        ("train digits --seed 0,1,2", "train once for each: milkweed sweep RECIPE --seeds 0,1,2"),
        ("train digits --seed [0,1]", "milkweed sweep RECIPE --seeds 0,1"),
        ("train digits --seed 1.5", "seed=1.5 does not fit; expected int"),
        ("train digits --seed -1", "seed=-1 does not fit; expected int, from 0"),
        ("train digits --seed 1e3", "--seed=1e3 does not fit; expected int, from 0 to 4294967295; use --seed 1000"),
        ("train digits --data.batch_size ６４", "use --data.batch_size 64"),
        ("train digits --model S4D", "--model=S4D is no model but a layer; use --model.layer.name s4d"),
        ("train digits --trainer.devices 0", "--trainer.devices=0 must be at least 1"),
        ("train digits --trainer.limit_train_batches 1.5", "--trainer.limit_train_batches=1.5 must be a whole number"),
        ("train digits --seed true", "seed=True does not fit; expected int"),
        ("train digits --model.d_model=abc", "error: --model.d_model='abc' does not fit; expected int"),
        (
            "train digits --model.d_model 1e3",
            "d_model=1e3 does not fit; expected int; use --model.d_model 1000",
        ),
        ("train digits --trainer.max_epochs 1,000", "expected int or null; use --trainer.max_epochs 1000"),
        ("train digits --model.prenorm maybe", "expected bool; use true or false"),
        ("train digits --task.schedule cosin", "did you mean cosine?"),
        ("train digits --model.layer.d_state big", "--model.layer.d_state='big' does not fit; expected int"),
        ("train digits --model.layer.frozen dt", 'expected list of str; use --model.layer.frozen "[dt]"'),
        ("train digits --model.layer.name s5", "--model.layer.name='s5' is unknown; did you mean 's4'?"),
        ("train digits-mixer --model.token_linear monarch", "use --model.token_linear.name monarch"),
        ("train digits-mixer --model.token_linear.name monrach", "--model.token_linear.name='monrach' is unknown; did"),
        ("train digits-mixer --model.token_linear.nblocks 2", "option --model.token_linear.nblocks; dense has"),
        (
            'train digits-mixer --model.token_linear "{name: monarch}" --model.token_linear.nblocks 2.0',
            "expected int; use --model.token_linear.nblocks 2",
        ),
        ("train digits --model.layer.name [s4]", "--model.layer.name=['s4'] is unknown"),
        ("train digits --model.layer ''", "--model.layer='' does not fit; expected mapping"),
        ("train digits --model.layer.name gated_mixer", 'recipe gives, use --model.layer "{name: gated_mixer}"'),
        (
            "train digits --model Sashimi --model.layer.d_state 8",
            "d_state needs --model.layer.name, one of",
        ),
        *(
            (
                f'train digits --trainer.callbacks "[{each}]"',
                "[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: …}}]",
            )
            for each in ("EarlyStopping", "{class_path: EarlyStopping}")
        ),
        ("train digits --model.layer.name mine", "a class of your own needs milkweed --import MODULE"),
        ("train --import mine digits", "--import stands before the command: milkweed --import mine train"),
        ("plot kernel x --import=mine", "stands before the command: milkweed --import mine plot"),
        ("train digits --trainer.callbacks [1]", "--trainer.callbacks=1 does not fit; expected Callback"),
        ("train digits --model nowhere.Net", "nowhere.Net cannot be imported: No module named 'nowhere'"),
        ("train digits --data Digts", "--data='Digts' is unknown; did you mean 'Digits'?"),
        ("version", "use milkweed --version"),
        ("list", "use milkweed recipes"),
        ("eval runs/x", "use milkweed evaluate"),
        ("--seed 3", "milkweed train digits --seed 3"),
        ("inspect runs/x", "runs/x is neither a recipe file (.yaml) nor the folder of a run"),
    ],
)
def test_natural_mistakes_get_the_right_hint(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(command, capsys)
    assert list(tmp_path.iterdir()) == []


def test_words_of_other_programs_lead_to_options_and_commands_that_exist():
    known = {"name", "out", "resume"}
    for recipe in shipped_recipes():
        known |= set(options_of(resolve(find_recipe(recipe).values, [])).listed())
    assert set(words.OPTIONS.values()) <= known
    from milkweed.cli import COMMANDS

    assert set(MEANT_COMMANDS.values()) <= {*COMMANDS, "--version"}


def test_the_recommended_logger_works(capsys):
    text = refused("train digits --trainer.logger CSVLogger", capsys)
    value = re.search(r'use (--trainer\.logger) "(\{.*\})"', text)
    resolved = resolve(find_recipe("digits").values, split_overrides([value[1], value[2]])[1])
    assert type(build(resolved).trainer_options["logger"]).__name__ == "CSVLogger"


def test_folders_of_runs_are_told_from_recipes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "--model.d_model 8 --model.depth 1 --data.limit 96 --data.batch_size 32 --trainer.max_epochs 1"
    assert main(["train", "digits", *small.split()]) == 0
    capsys.readouterr()
    for command in ("inspect", "train"):
        message = refused(f"{command} runs/digits", capsys)
        assert "runs/digits is the folder of a run, not a recipe; name runs/digits/config.yaml" in message
        assert "milkweed evaluate runs/digits" in message
    assert main(["inspect", "runs/digits/config.yaml"]) == 0
    assert "did you mean runs/digits?" in refused("plot kernel digits", capsys)
    assert "did you mean runs/digits?" in refused("evaluate digits", capsys)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("recipe", ["digits", "digits-mixer", "digits-monarch", "m2-bert-mlm", "m2-gpt", "shakespeare"])
def test_help_lists_every_option_and_each_works(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["train", recipe, "--help"]) == 0
    shown = re.findall(r"^  --(\S+) +(.*)$", capsys.readouterr().out.partition("options of recipe")[2], re.MULTILINE)
    names = [name for name, _ in shown]
    values = find_recipe(recipe).values
    config = resolve(values, [])
    assert set(options_of(config).listed()) == set(names)
    assert len(set(names)) == len(names)
    for name in names:  # each is taken, with the value that it has
        if "." in name and not name.startswith("trainer.densify"):
            place = config
            for key in name.split("."):
                place = place.get("init_args") or {} if "class_path" in place else place
                place = place.get(key) if isinstance(place, dict) else None
                if place is None:
                    break
            if place is not None:
                assert resolve(values, [(name, place)]) == config, name


def test_options_of_a_layer_are_listed_with_their_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    for options, expected in (
        ({"name": "s4d"}, {"d_state": "N", "bidirectional": "False", "activation": "gelu", "dropout": "0.0"}),
        ({"name": "long_conv"}, {"kernel": "explicit", "tie_dropout": "False", "squash": "0.0"}),
        ({"name": "gated_mixer", "l_max": 64}, {"l_max": "64"}),
    ):
        values = find_recipe("digits").values
        values["model"]["init_args"]["layer"] = options
        from rich.console import Console

        from milkweed.cli.recipe import Recipe
        from milkweed.cli.table import print_options

        print_options(Console(), Recipe("mine", "", values))
        shown = dict(re.findall(r"^  --model\.layer\.(\S+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
        for name in expected:
            assert len(shown[name].split()) > 2, (options, name, shown[name])  # a value and what it means


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("trainer.max_time", "1:10:00:00", "1:10:00:00"),
        ("trainer.max_time", "00:01:30:00", "00:01:30:00"),
        ("data.root", "2024", "2024"),
        ("data.root", "007", "007"),
        ("data.root", "no", "no"),
        ("data.root", "null", None),
        ("data.root", "/data/my #1", "/data/my #1"),
        ("data.root", "'/data/my #1'", "/data/my #1"),
        ("trainer.profiler", "simple", "simple"),
    ],
)
def test_texts_stay_texts(name, text, value):
    resolved = resolve(find_recipe("smnist").values, split_overrides([f"--{name}", text])[1])
    section, _, option = name.partition(".")
    found = resolved[section] if section == "trainer" else resolved[section]["init_args"]
    assert found[option] == value


def test_times_in_a_recipe_are_texts(tmp_path):
    text = shipped_recipes()["digits"].read_text() + "  max_time: 1:10:00:00\n"
    Path(tmp_path / "mine.yaml").write_text(text)
    assert resolve(find_recipe(str(tmp_path / "mine.yaml")).values, [])["trainer"]["max_time"] == "1:10:00:00"
