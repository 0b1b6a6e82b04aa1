"""From files of one's own to predictions and their picture, by three commands."""

import csv
import json

import numpy as np
import pytest
from tests.own_files import options, own_files

import milkweed as mw
from milkweed.cli import main

pytest.importorskip("lightning")
pytest.importorskip("pandas")
pytest.importorskip("soundfile")
pytest.importorskip("PIL.Image")
SMALL = ["--model.d_model", "8", "--model.depth", "1", "--data.batch_size", "4", "--trainer.max_epochs", "1"]


def an_input(recipe):
    root = own_files()
    return {
        "arrays": root / "x.npy",
        "wav-folder": root / "wavs/yes/3.wav",
        "image-folder": root / "images/no/2.png",
        "csv-forecast": root / "table.csv",
        "hugging-face": np.array([0.5, 1.0, -1.0]),
    }[recipe]


@pytest.mark.parametrize("recipe", ["arrays", "csv-forecast", "hugging-face", "image-folder", "wav-folder"])
def test_train_predict_and_draw(recipe, tmp_path, capsys):
    source = an_input(recipe)
    assert main(["train", recipe, "--out", str(tmp_path), *options()[recipe], *SMALL, "--data.limit", "12"]) == 0
    run = tmp_path / recipe
    found = mw.load_predictor(run)(source)
    if isinstance(source, np.ndarray):
        np.save(tmp_path / "x.npy", source)
        source = tmp_path / "x.npy"
    outputs = [tmp_path / "found.csv", tmp_path / "found.png"]
    assert main(["predict", str(run), str(source), "--out", str(outputs[0]), "--plot", str(outputs[1])]) == 0
    assert outputs[1].read_bytes().startswith(b"\x89PNG")
    with outputs[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    if recipe == "csv-forecast":
        assert [row["time"] for row in rows] == [f"2024-01-17 {hour}:00:00" for hour in (16, 17, 18, 19)]
        assert [float(row["load"]) for row in rows] == [step["load"] for step in found[0]["steps"]]
    else:
        assert [row["class"] for row in rows] == [each["class"] for each in found]
        names = json.loads((run / "preprocessing.json").read_text())["values"]["class_names"]
        assert set(found[0]["probabilities"]) == set(names)
        assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    capsys.readouterr()
    assert main(["predict", str(run), str(source), "--plot", "found.gif"]) == 2
    assert "--plot found.gif must end in .png, .svg or .pdf" in capsys.readouterr().err


def test_a_run_on_a_bare_file_name_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.RandomState(0)
    np.save("x.npy", random.randn(60, 8))
    np.save("y.npy", np.arange(60) % 2)
    names = ["--data.inputs", "x.npy", "--data.targets", "y.npy"]
    assert main(["train", "arrays", *names, *SMALL]) == 0
    assert len(mw.load_predictor("runs/arrays")("x.npy")) == 60
    assert main(["evaluate", "runs/arrays"]) == 0


def test_texts_of_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--data.source", str(own_files() / "rows"), "--data.inputs", "text", "--model.encoder", "embedding"]
    assert main(["train", "hugging-face", *options, *SMALL]) == 0
    found = mw.load_predictor("runs/hugging-face")(["row 3", "something else"])
    assert [each["input"] for each in found] == ["row 3", "something else"]
