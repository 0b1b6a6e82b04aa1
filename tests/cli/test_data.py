"""`milkweed data check`, and recipes for data of one's own."""

import sys

import numpy as np
import pytest

from milkweed.cli import main

pytest.importorskip("lightning")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")


def write_arrays(count=80, length=12):
    random = np.random.RandomState(0)
    labels = np.arange(count) % 2
    np.save("x.npy", random.randn(count, length) + 3 * labels[:, None])
    np.save("y.npy", np.array(["low", "high"])[labels])


def test_says_what_is_there(capsys):
    write_arrays()
    assert main(["data", "check", "arrays", "--data.inputs", "x.npy", "--data.targets", "y.npy"]) == 0
    shown = capsys.readouterr().out
    assert "train        64" in " ".join(shown.split("\n")).replace("  ", "  ")
    assert "high" in shown
    assert "12 steps, 1 features per step, 2 classes" in shown


def test_says_what_is_missing(capsys):
    assert main(["data", "check", "arrays", "--data.inputs", "x.npy", "--data.targets", "y.npy"]) == 2
    assert "--data.inputs x.npy" in capsys.readouterr().err
    assert main(["data", "check", "wav-folder", "--data.root", "nowhere"]) == 2
    assert "name a folder that holds a folder of files for each class" in capsys.readouterr().err


def test_trained_from_files_in_one_command(capsys):
    write_arrays()
    options = {"data.inputs": "x.npy", "data.targets": "y.npy", "data.batch_size": "16", "trainer.max_epochs": "3"}
    options |= {"model.d_model": "8", "model.depth": "1", "task.warmup_steps": "0"}
    assert main(["train", "arrays", *(word for name, value in options.items() for word in (f"--{name}", value))]) == 0
    assert "100.00%" in capsys.readouterr().out


def test_a_table_is_forecast_in_one_command(capsys):
    pandas = pytest.importorskip("pandas")
    rows = np.sin(np.arange(300) / 5)
    pandas.DataFrame({"t": pandas.date_range("2024", periods=300, freq="h"), "y": rows}).to_csv("t.csv", index=False)
    options = {"data.file": "t.csv", "data.context": "20", "data.horizon": "4", "trainer.max_epochs": "2"}
    options |= {"model.d_model": "8", "model.depth": "1"}
    assert (
        main(["train", "csv-forecast", *(word for name, value in options.items() for word in (f"--{name}", value))])
        == 0
    )
    assert "mse" in capsys.readouterr().out


def test_a_module_beside_the_recipe_is_imported(tmp_path, capsys, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project/waves_of_mine.py").write_text(
        "import torch\nfrom milkweed.data import SequenceData\nfrom milkweed.data.batches import ArrayDataset\n\n"
        "class WavesOfMine(SequenceData):\n    length, d_input, d_output, class_names = 9, 1, 2, ('a', 'b')\n\n"
        "    def __init__(self, batch_size: int = 8, seed: int = 0, limit: int | None = None):\n"
        "        super().__init__(batch_size, seed, limit)\n\n"
        "    def load(self):\n        x = torch.randn(20, 9, 1)\n"
        "        return {name: ArrayDataset(x, torch.arange(20) % 2) for name in ('train', 'val', 'test')}\n"
    )
    recipe = (
        "data: {class_path: waves_of_mine.WavesOfMine}\nmodel: {class_path: SequenceModel}\n"
        "task: {class_path: Classification}\n"
        "trainer: {max_epochs: 1}\n"
    )
    (tmp_path / "project/mine.yaml").write_text(recipe)
    monkeypatch.delitem(sys.modules, "waves_of_mine", raising=False)
    assert main(["data", "check", "project/mine.yaml"]) == 0, capsys.readouterr().err
    assert "WavesOfMine: 9 steps" in capsys.readouterr().out
