import json

import pytest

from milkweed.cli import main
from milkweed.train.run_folder import RunFolder, write_json

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "1"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs, two of which differ in their seed only; their accuracies are set by hand."""
    out = tmp_path_factory.mktemp("compare") / "runs"
    for name, options, accuracy in (
        ("legs-0", ("--seed", "0"), 0.5),
        ("legs-1", ("--seed", "1"), 0.75),
        ("lin-0", ("--model.layer.init", "lin"), 0.25),
    ):
        assert main(["train", "digits", "--out", str(out), "--name", name, *options, *SMALL]) == 0
        results = RunFolder(out / name).results
        write_json(results, json.loads(results.read_text()) | {"test": {"accuracy": accuracy}})
    return out


def test_table_and_files(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", str(runs), "--out", str(tmp_path / "a.md"), "--out", str(tmp_path / "a.png")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Digits:", "test", "accuracy"] in lines
    legs = next(line for line in lines if line[:2] == ["legs", "legs"])
    assert legs[2:8] == ["0,", "1", "62.50", "±", "17.68", "%"]
    assert next(line for line in lines if line[:2] == ["lin-0", "lin"])[3:5] == ["25.00", "%"]
    assert "**62.50 ± 17.68 %**" in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("width", [40, 80])
def test_narrow_terminals_get_several_tables(width, runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["compare", str(runs)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= width for line in out.splitlines())
    assert "62.50 ± 17.68 %" in out
    assert out.count("lin-0") == out.count(" run ")


def test_runs_that_are_left_out_are_named(runs, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    assert main(["compare", str(runs / "lin-0"), str(tmp_path / "notes")]) == 0
    assert f"left out: {tmp_path / 'notes'} is no run: it has no config.yaml" in capsys.readouterr().out


def test_files_are_checked_before_runs_are_read(runs, tmp_path, capsys, monkeypatch):
    def error(*arguments):
        assert main(["compare", *map(str, arguments)]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "--out x.xlsx must end in one of .csv, .json, .md, .png" in error(runs, "--out", "x.xlsx")
    assert f"--out {tmp_path}.md" in error(runs, "--out", tmp_path)
    assert f"{tmp_path / 'none'} is no folder of a run" in error(tmp_path / "none")
    assert "there is no finished run to compare" in error(tmp_path)
    assert "the following arguments are required: RUN" in error()
    monkeypatch.chdir(runs.parent)
    assert "did you mean runs/lin-0?" in error("lin-0")
    assert list(tmp_path.iterdir()) == []
