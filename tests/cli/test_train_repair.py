"""Runs whose files are damaged, and names that look like something else."""

import json
import shutil

import pytest
import torch

from milkweed.cli import main
from milkweed.convert import load_pretrained

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "3"),
]
PARTS = ("metrics.csv", "results.json", "environment.json", "model.safetensors", "learning_curves.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["train", "digits", "--out", str(out), "--name", "a", *SMALL]) == 0
    return out / "a"


def resumed(folder, *options):
    return main(["train", "digits", "--out", str(folder.parent), "--name", folder.name, "--resume", "auto", *options])


@pytest.mark.parametrize("how", ["cut off", "emptied", "removed", "link"])
def test_a_finished_run_mends_its_files(finished, tmp_path, how, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished, folder)
    victim = tmp_path / "victim"
    victim.write_text("as before")
    for name in PARTS:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if how == "link":
            (folder / name).symlink_to(victim)
        elif how != "removed":
            (folder / name).write_bytes(content[: len(content) // 2] if how == "cut off" else b"")
    assert resumed(folder) == 0
    assert (folder / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    weights = [load_pretrained(path).state_dict() for path in (finished, folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    before, now = (json.loads((path / "results.json").read_text()) for path in (finished, folder))
    assert now == before
    assert json.loads((folder / "environment.json").read_text())["recipe"] == "digits"
    assert victim.read_text() == "as before"
    told = " ".join(capsys.readouterr().out.split())
    if how in {"cut off", "emptied"}:
        assert "metrics.csv is damaged" in told
        assert "environment.json is damaged" in told
    assert main(["evaluate", str(folder)]) == 0


def test_a_damaged_best_checkpoint_is_replaced_by_the_newest(finished, tmp_path, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished, folder)
    for name in ("best.ckpt", "step-000000009.ckpt"):
        path = folder / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-100])
    assert resumed(folder) == 0  # goes on from the one before
    assert "step-000000009.ckpt is corrupt" in " ".join(capsys.readouterr().out.split())
    best = folder / "checkpoints" / "best.ckpt"
    best.unlink()  # a link to another checkpoint
    best.write_bytes(b"")
    assert resumed(folder) == 0
    assert "best.ckpt is damaged or missing: step-000000009.ckpt, the newest, is tested" in " ".join(
        capsys.readouterr().out.split()
    )


def test_checkpoints_that_lead_out_of_a_run_are_left_alone(finished, tmp_path, capsys):
    folder, other = tmp_path / "a", tmp_path / "other"
    shutil.copytree(finished, folder)
    (folder / "checkpoints").rename(other)
    (folder / "checkpoints").symlink_to(other)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    assert resumed(folder, "--trainer.max_epochs", "4") == 2
    newest = folder / "checkpoints" / "step-000000009.ckpt"
    assert main(["train", "digits", "--out", str(tmp_path), "--resume", str(newest)]) == 2
    assert capsys.readouterr().err.count("a run keeps its files in its own folder") >= 1
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_a_run_folder_may_be_a_link(finished, tmp_path):
    (tmp_path / "scratch").mkdir()
    shutil.copytree(finished, tmp_path / "scratch" / "a")
    (tmp_path / "a").symlink_to(tmp_path / "scratch" / "a")
    assert resumed(tmp_path / "a", "--trainer.max_epochs", "4") == 0
    assert (tmp_path / "scratch" / "a" / "checkpoints" / "step-000000012.ckpt").is_file()


@pytest.mark.parametrize("name", ["[red]x$a$ *", "[x", "a[1]$"])
def test_a_name_is_shown_as_it_is(finished, tmp_path, name, capsys):
    shutil.copytree(finished, tmp_path / name)
    assert resumed(tmp_path / name, "--trainer.max_epochs", "4") == 0
    # Without blanks: a long path is folded anywhere.
    shown = "".join(capsys.readouterr().out.split())
    assert f"Continuing{tmp_path / name}fromstep9.".replace(" ", "") in shown
    assert main(["evaluate", str(tmp_path / name)]) == 0
    assert f"{name}:testsplit".replace(" ", "") in "".join(capsys.readouterr().out.split())
    recipe = tmp_path / f"{name}.yaml"
    shutil.copy(finished / "config.yaml", recipe)
    assert main(["train", str(recipe), "--out", str(tmp_path), "--trainer.max_epochs", "1"]) == 0
    assert (tmp_path / f"{name}-2" / "results.json").is_file()


@pytest.mark.parametrize("name", ["..", "a/b", "../a", ""])
def test_a_name_leads_nowhere(tmp_path, name, capsys):
    for more in ([], ["--resume", "auto"]):
        assert main(["train", "digits", "--out", str(tmp_path / "out"), "--name", name, *more]) == 2
        assert "must be the name of one folder" in capsys.readouterr().err
    shutil.copy(__file__, tmp_path / "x")
    recipe = tmp_path / "...yaml"
    assert main(["recipes"]) == 0
    recipe.write_text("data: {}\nmodel: {}\ntask: {}\ntrainer: {}\n")
    assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_finished_run_records_no_options_that_it_was_not_trained_with(finished, tmp_path, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for options in (
        ("--task.lr", "0.5"),
        ("--data.limit", "64"),
        ("--trainer.max_epochs", "1"),
        ("--trainer.max_epochs", "2"),
    ):
        assert resumed(folder, *options) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"{options[0]} would change nothing" in told
        assert "has trained 3 epochs already" in told
        assert "--trainer.max_epochs 4 or more goes on" in told
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert resumed(folder, "--task.lr", "0.01", "--trainer.max_epochs", "3") == 0  # as it was
    assert resumed(folder, "--task.lr", "0.5", "--trainer.max_epochs", "4") == 0
