"""A regression from the command line: what is judged by an error, not by an accuracy."""

import csv
import json

import pytest

from milkweed.cli import main

SMALL = [
    *("--data.length", "32", "--data.lag", "4", "--data.batch_size", "16", "--data.train_size", "48"),
    *("--data.eval_size", "16", "--model.layer.d_state", "16", "--model.layer.dt_min", "0.5"),
    *("--model.layer.dt_max", "0.5", "--trainer.max_epochs", "4"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["train", "delay", "--out", str(out), *SMALL, "--trainer.checkpoint_every_n_steps", "1"]) == 0
    return out


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_loss_falls(out):
    losses = [row["train_loss"] for row in rows(out / "delay")]
    assert losses[-1] < 0.5 * losses[0]


def test_run_folder_holds_curves_but_no_confusion_matrix(out):
    names = {path.name for path in (out / "delay").iterdir()}
    assert "learning_curves.png" in names
    assert "confusion_matrix.png" not in names


def test_smallest_error_is_the_best(out):
    results = json.loads((out / "delay" / "results.json").read_text())
    assert results["metric"] == "rmse"
    assert set(results["test"]) == {"loss", "rmse"}
    assert results["test"]["rmse"] == pytest.approx(results["test"]["loss"] ** 0.5, rel=1e-5)
    assert results["best"]["val_rmse"] == min(row["val_rmse"] for row in rows(out / "delay"))


def test_tables_show_the_error(out, capsys):
    error = f"{json.loads((out / 'delay' / 'results.json').read_text())['test']['rmse']:.4f}"
    assert main(["evaluate", str(out / "delay")]) == 0
    assert error in capsys.readouterr().out
    assert main(["train", "delay", "--out", str(out), "--name", "delay", "--resume", "auto"]) == 0
    shown = capsys.readouterr().out
    assert "rmse" in shown
    assert error in shown
    assert "%" not in shown


def test_resumed_in_the_middle_of_an_epoch(out):
    before = rows(out / "delay")
    checkpoints = out / "delay" / "checkpoints"
    (checkpoints / "step-000000012.ckpt").unlink()
    assert main(["train", "delay", "--out", str(out), "--name", "delay", "--resume", "auto"]) == 0
    assert (checkpoints / "step-000000012.ckpt").is_file()
    assert rows(out / "delay") == before
