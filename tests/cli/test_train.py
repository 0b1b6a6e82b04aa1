import csv
import json

import pytest
import torch
import yaml

from milkweed.cli import main
from milkweed.convert import load_pretrained

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "2"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["train", "digits", "--out", str(out), "--seed", "3", *SMALL]) == 0
    return out


def test_run_folder_is_complete(out):
    folder = out / "digits"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "confusion_matrix.png",
        "environment.json",
        "learning_curves.png",
        "metrics.csv",
        "model.safetensors",
        "preprocessing.json",
        "results.json",
    ]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "step-000000003.ckpt",
        "step-000000006.ckpt",
    ]


def test_config_is_resolved_and_trains_the_same_again(out):
    config = yaml.safe_load((out / "digits" / "config.yaml").read_text())
    assert config["seed"] == 3
    layer = config["model"]["init_args"]["layer"]
    assert layer["name"] == "s4d"
    assert layer["d_state"] == 4
    assert config["trainer"]["max_epochs"] == 2
    recipe = out / "again.yaml"
    recipe.write_text(yaml.safe_dump(config))
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    assert without_seconds(out / "again") == without_seconds(out / "digits")


def without_seconds(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_metrics_have_one_row_per_epoch(out):
    rows = without_seconds(out / "digits")
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "3"), ("1", "6")]
    assert set(rows[0]) == {"epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"}


def test_environment_and_results_are_recorded(out):
    environment = json.loads((out / "digits" / "environment.json").read_text())
    assert environment["recipe"] == "digits"
    assert environment["seed"] == 3
    assert environment["versions"]["torch"] == torch.__version__
    results = json.loads((out / "digits" / "results.json").read_text())
    model = load_pretrained(out / "digits")
    assert results["parameters"] == sum(p.numel() for p in model.parameters())
    assert set(results["test"]) == {"accuracy", "loss"}
    assert results["epochs"] == 2


def test_evaluation_repeats_the_result(out, capsys):
    results = json.loads((out / "digits" / "results.json").read_text())
    assert main(["evaluate", str(out / "digits")]) == 0
    assert f"{results['test']['loss']:.4f}" in capsys.readouterr().out
    assert main(["evaluate", str(out / "digits"), "--split", "val"]) == 0
    assert f"{results['best']['val_loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--model.d_model", "16"), ("--model", "MlpMixer")])
def test_evaluation_refuses_another_model(out, options, capsys):
    assert main(["evaluate", str(out / "digits"), *options]) == 2
    assert f"{options[0]} cannot be set: the model of {out / 'digits'}" in " ".join(capsys.readouterr().err.split())


def test_evaluation_refuses_a_damaged_model(out, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((out / "digits" / "config.yaml").read_text())
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "no model.safetensors" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes((out / "digits" / "model.safetensors").read_bytes()[:-10])
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "corrupt or truncated" in capsys.readouterr().err


def test_a_run_is_never_overwritten(out, capsys):
    before = (out / "digits" / "metrics.csv").read_bytes()
    assert main(["train", "digits", "--out", str(out), "--name", "digits", *SMALL]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert main(["train", "digits", "--out", str(out), *SMALL]) == 0
    assert (out / "digits-2" / "results.json").is_file()
    assert (out / "digits" / "metrics.csv").read_bytes() == before


def test_finished_run_resumes_into_itself(out, capsys):
    before = without_seconds(out / "digits")
    arguments = ["train", "digits", "--out", str(out), "--name", "digits", "--resume", "auto"]
    assert main(arguments) == 0
    assert without_seconds(out / "digits") == before
    assert main([*arguments, "--trainer.max_epochs", "3"]) == 0
    assert "Changed: trainer.max_epochs, 2 before, 3 now." in capsys.readouterr().out
    rows = without_seconds(out / "digits")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert rows[:2] == before


def test_resume_is_refused_across_recipes_and_folders(out, capsys):
    assert main(["train", "digits-mixer", "--out", str(out), "--name", "digits", "--resume", "auto"]) == 2
    assert "made from recipe digits" in capsys.readouterr().err
    best = out / "digits" / "checkpoints" / "best.ckpt"
    assert main(["train", "digits", "--out", str(out), "--name", "other", "--resume", str(best)]) == 2
    assert "belongs to run digits" in capsys.readouterr().err
    stray = out / "stray.ckpt"
    stray.write_bytes(best.read_bytes())
    assert main(["train", "digits", "--out", str(out), "--resume", str(stray)]) == 2
    assert "lies in no run folder" in capsys.readouterr().err


def test_damaged_checkpoints(out, capsys):
    folder = out / "digits-2" / "checkpoints"
    newest, older = sorted(folder.glob("step-*.ckpt"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:1000])
    resume = ["train", "digits", "--out", str(out), "--name", "digits-2", "--resume"]
    assert main([*resume, str(newest)]) == 2
    assert "corrupt or truncated" in capsys.readouterr().err
    reference = without_seconds(out / "digits-2")
    assert main([*resume, "auto"]) == 0
    assert f"skipped: checkpoint {newest} is corrupt" in " ".join(capsys.readouterr().out.split())
    assert without_seconds(out / "digits-2") == reference
    older.unlink()
    # Unlinked first: it may be the same file as the newest checkpoint.
    (folder / "best.ckpt").unlink()
    (folder / "best.ckpt").write_bytes(b"")
    assert main([*resume, "auto", "--trainer.max_epochs", "3"]) == 0
    for path in folder.glob("step-*.ckpt"):
        path.write_bytes(b"")
    assert main([*resume, "auto"]) == 2
    assert "none of the 2 checkpoints" in capsys.readouterr().err


def test_demo_prints_one_table(tmp_path, capsys, monkeypatch):
    from milkweed.cli import recipe

    def shortened(path):
        found = read(path)
        found.values["trainer"] = {
            "max_epochs": 1,
            "limit_train_batches": 1,
            "limit_val_batches": 1,
            "limit_test_batches": 1,
        }
        return found

    read = recipe.read_recipe
    monkeypatch.setattr(recipe, "read_recipe", shortened)
    assert main(["demo", "--out", str(tmp_path), "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.startswith(" digits")]
    assert [(row[0], row[2]) for row in rows] == [
        ("digits", "26,250"),
        ("digits-mixer", "4,741,922"),
        ("digits-monarch", "1,497,890"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "digits-mixer", "digits-monarch"]
    assert json.loads((tmp_path / "digits" / "results.json").read_text())["seed"] == 1


def test_resume_with_another_rate_learns_at_it(tmp_path):
    start = ["train", "digits", "--out", str(tmp_path), "--name", "a", *SMALL]
    assert main([*start, "--task.schedule", "constant", "--task.warmup_steps", "0"]) == 0
    more = ["train", "digits", "--out", str(tmp_path), "--name", "a", "--resume", "auto"]
    assert main([*more, "--task.lr", "0.002", "--task.weight_decay", "0.7", "--trainer.max_epochs", "3"]) == 0
    with (tmp_path / "a" / "metrics.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == [0.01, 0.01, 0.002]
    groups = torch.load(tmp_path / "a" / "checkpoints" / "step-000000009.ckpt", weights_only=True)
    assert groups["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.7


def test_refused_resume_leaves_the_run_as_it_was(tmp_path, capsys):
    assert main(["train", "digits", "--out", str(tmp_path), "--name", "a", *SMALL]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    more = ["train", "digits", "--out", str(tmp_path), "--name", "a", "--resume", "auto"]
    assert main([*more, "--model.d_model", "16"]) == 2
    assert "belongs to another model" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()} == before


def test_an_empty_folder_of_a_killed_start_is_taken_over(tmp_path):
    (tmp_path / "a").mkdir()
    resume = ["train", "digits", "--out", str(tmp_path), "--name", "a", "--resume", "auto"]
    assert main([*resume, *SMALL, "--trainer.max_epochs", "1"]) == 0
    assert (tmp_path / "a" / "results.json").is_file()


@pytest.mark.parametrize("name", ["a/b", "..", "", "."])
def test_names_of_runs_are_names_of_folders(name, tmp_path, capsys):
    assert main(["train", "digits", "--out", str(tmp_path), "--name", name, *SMALL]) == 2
    assert "must be the name of one folder" in capsys.readouterr().err


def test_resume_command_names_the_recipe_as_typed(tmp_path):
    from milkweed.cli.recipe import find_recipe
    from milkweed.train.plan import Plan
    from milkweed.train.run_folder import RunFolder

    file = tmp_path / "mine.yaml"
    file.write_text("# Mine.\ndata: {}\nmodel: {}\ntask: {}\ntrainer: {}\n")
    recipe = find_recipe(str(file))
    plan = Plan(recipe.name, recipe.values, [], tmp_path, typed=recipe.typed)
    assert f"train {file} --name k" in plan.resume_command(RunFolder(tmp_path / "k"))


def test_one_row_of_logits_per_sequence(tmp_path, capsys):
    assert main(["train", "digits", "--out", str(tmp_path / "new"), "--model.pooling", "none", *SMALL]) == 2
    assert "set --model.pooling mean or last" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
