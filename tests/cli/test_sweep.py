"""Sweeps. Runs train in this process here, where each has one of its own: see test_sweep_processes.py."""

import contextlib
import csv
import json
import os
import shlex
import subprocess
import types

import pytest

from milkweed.cli import main
from milkweed.cli.sweep import processes
from milkweed.cli.sweep.grid import file_name, read_grid, read_seeds, short_names
from milkweed.train.run_folder import RunFolder

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "1"),
]
INITS = ("--grid", "model.layer.init=legs,lin")


@pytest.fixture
def commands(monkeypatch):
    """Train in this process, and collect the commands."""
    given = []

    def start(command, log, environment, combination, slot):
        given.append(command)
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = main(command[3:])
        return processes.Child(combination, types.SimpleNamespace(returncode=code, poll=lambda: code), log, slot, 0)

    monkeypatch.setattr(processes, "start_process", start)
    return given


def sweep(out, *arguments):
    return main(["sweep", "digits", "--out", str(out), *SMALL, *arguments])


def error(capsys, *arguments):
    assert main(["sweep", "digits", *SMALL, *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_every_combination_is_a_run_and_finished_ones_are_skipped(tmp_path, commands, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = (*INITS, "--seeds", "2", "--seed", "3", "--grid", "lr=0.02")
    assert sweep(tmp_path, *arguments) == 0
    out, folder = capsys.readouterr().out, tmp_path / "digits-sweep"
    names = [f"init={init},lr=0.02,seed={seed}" for init in ("legs", "lin") for seed in (3, 4)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    for name, (init, seed) in zip(names, [("legs", 3), ("legs", 4), ("lin", 3), ("lin", 4)], strict=True):
        config = RunFolder(folder / name).read_config()
        model, task = config["model"]["init_args"], config["task"]["init_args"]
        assert (model["layer"]["init"], task["lr"], config["seed"], model["d_model"]) == (init, 0.02, seed, 8)
    with (folder / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seeds"]) for row in rows] == [("init=legs,lr=0.02", "3 4"), ("init=lin,lr=0.02", "3 4")]
    values = [json.loads((folder / name / "results.json").read_text())["test"]["accuracy"] for name in names[:2]]
    assert float(rows[0]["test"]) == pytest.approx(sum(values) / 2)
    assert f"[4/4] {names[3]}: finished" in out
    assert "±" in out
    states = json.loads((folder / "sweep.json").read_text())["runs"]
    assert {state["state"] for state in states.values()} == {"finished"}

    (folder / names[1] / "results.json").unlink()
    assert sweep(tmp_path, *arguments) == 0
    assert len(commands) == 5
    assert names[1] in commands[-1]
    assert "3 of 4 runs are finished already." in capsys.readouterr().out

    # More epochs, and a further value: finished runs go on.
    assert (
        sweep(tmp_path, "--grid", "model.layer.init=legs", "--grid", "lr=0.02", "--seed=3", "--trainer.max_epochs=2")
        == 0
    )
    assert json.loads((folder / names[0] / "results.json").read_text())["epochs"] == 2

    assert sweep(tmp_path, *arguments, "--task.weight_decay", "0.5") == 2
    message = capsys.readouterr().err
    assert "init=legs,lr=0.02,seed=3 was trained with other options: task.weight_decay was 0.05 and is 0.5" in message
    assert len(commands) == 6


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path, commands, capsys):
    # Nothing is wrong with 3.0e38 before the first step.
    assert sweep(tmp_path, "--grid", "lr=3.0e38,0.01", "--name", "rates", "--model.layer.name=s4d") == 2
    captured = capsys.readouterr()
    states = json.loads((tmp_path / "rates" / "sweep.json").read_text())["runs"]
    failed, good = states["lr=3.0e38,seed=0"], states["lr=0.01,seed=0"]
    assert failed["state"] == "failed"
    assert "lower task.lr" in failed["error"]
    assert good["state"] == "finished"
    assert "1 of 2 runs failed" in captured.err
    assert "[1/2] lr=3.0e38,seed=0: failed" in captured.out
    assert "lr=0.01,seed=0" in captured.out.partition("Digits: test accuracy")[2]
    assert not (tmp_path / "rates" / "lr=3.0e38,seed=0").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--grid", "model.layer.init=legs,leg"],
            "--grid model.layer.init=leg: init='leg' is unknown; did you mean 'legs'?",
        ),
        (["--grid", "lr=0.1,abc"], "--grid lr=abc: --task.lr='abc' does not fit; expected float"),
        (["--grid", "depth=1,0", "--grid", "lr=0.1,0.2"], "--grid depth=0: depth must be at least 1; got 0"),
        (["--grid", "d_state=6,7", "--grid", "lr=0.1,0.2"], "--grid d_state=7: init='legs' needs an even d_state"),
        (["--grid", "model.layer.init"], "--grid model.layer.init must be OPTION=VALUE,VALUE,…"),
        (["--grid", "lr="], "--grid lr= must be OPTION=VALUE"),
        (["--grid", "model.lyer.init=legs"], "unknown option --model.lyer.init; did you mean --model.layer.init?"),
        (["--grid", "lrr=1"], "--grid lrr=1: there is no option lrr; did you mean task.lr?"),
        (["--grid", "lr=0.1,0.1"], "--grid lr=0.1,0.1 has 0.1 twice"),
        (["--grid", "lr=1", "--grid", "task.lr=2"], "--grid task.lr=2: task.lr has its values already"),
        (["--grid", "seed=0,1"], "seeds are asked for by --seeds 3, or --seeds 0,5,7"),
        (["--grid", "d_model=[1"], "--grid d_model=[1 cannot be read: expected ',' or ']'"),
        (["--seeds", "three"], "--seeds three must be a number of seeds, e.g. 3"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--seeds", "1,1"], "--seeds 1,1 has a seed twice"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--name", "../x"], "name='../x' must be the name of one folder"),
        (["--slurm", "."], "--slurm . is a folder"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_no_sweep(tmp_path, capsys):
    RunFolder(tmp_path / "a").write_config({"seed": 0, "data": {}, "model": {}, "task": {}, "trainer": {}})
    assert "is the folder of a run; choose another --name" in error(capsys, "--out", str(tmp_path), "--name", "a")


def test_values_are_read_as_a_recipe_reads_them():
    known = ["model.layer", "model.depth", "data.tag"]
    texts = ["model.layer={name: s4, d_state: 4},{name: s4d}", "depth=1,2", "data.tag='1,2',1e3,null"]
    layer, depth, tag = read_grid(texts, known)
    assert [each.value for each in layer] == [{"name": "s4", "d_state": 4}, {"name": "s4d"}]
    assert [json.loads(each.text) for each in layer] == [each.value for each in layer]
    assert [(each.option, each.value, each.text) for each in depth] == [
        ("model.depth", 1, "1"),
        ("model.depth", 2, "2"),
    ]
    assert [each.value for each in tag] == ["1,2", 1000.0, None]
    assert [each.text for each in tag] == ['"1,2"', "1e3", "null"]


def test_a_short_name_has_one_meaning():
    with pytest.raises(
        ValueError, match=r"name may be model\.linear\.name or model\.token_linear\.name; write it in full"
    ):
        read_grid(["name=dense"], ["model.linear.name", "model.token_linear.name"])


def test_seeds_are_counted_from_the_first_or_listed():
    assert read_seeds("3", 5) == [5, 6, 7]
    assert read_seeds("0, 5,7", 1) == [0, 5, 7]


def test_names_are_short_safe_and_distinct():
    assert short_names(["model.layer.init", "task.lr"]) == ["init", "lr"]
    assert short_names(["model.layer.name", "model.dropout", "data.dropout"]) == ["layer.name", "dropout", "dropout"]
    assert file_name("init=legs,lr=1e-3,seed=0") == "init=legs,lr=1e-3,seed=0"
    names = {file_name(f"root=/data/{each},seed=0") for each in ("a b", "a/b", "a:b", "x" * 500, "x" * 501)}
    assert len(names) == 5
    assert all("/" not in name and len(name) < 200 and name.endswith(",seed=0") for name in names)


def test_slurm_gets_a_script_with_a_run_for_each_task(tmp_path, commands, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = (*INITS, "--seeds", "2", "--name", "a b", "--slurm", "sweep.sh")
    assert sweep("runs", *arguments) == 0
    assert "sweep.sh trains 4 runs: sbatch sweep.sh" in capsys.readouterr().out
    assert commands == []
    assert not (tmp_path / "runs").exists()
    script = (tmp_path / "sweep.sh").read_text()
    assert "#SBATCH --array=0-3\n" in script
    printed = tmp_path / "print"
    printed.write_text('#!/bin/bash\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@"\n')
    printed.chmod(0o755)
    script = script.replace(shlex.quote(os.sys.executable), str(printed))
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    threads, *command = done.stdout.splitlines()
    assert threads == "4"
    assert command[:8] == ["-m", "milkweed", "train", "digits", "--out", "runs/a b", "--resume", "auto"]
    assert command[-4:] == ["--name", "init=lin,seed=0", "--model.layer.init=lin", "--seed=0"]
    assert main(command[2:]) == 0
    environment["SLURM_ARRAY_TASK_ID"] = "4"
    beyond = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (beyond.returncode, beyond.stderr) == (2, "there is no run for task 4\n")
    # Written anew without the finished run; nobody else's file is.
    assert sweep("runs", *arguments) == 0
    assert "#SBATCH --array=0-2\n" in (tmp_path / "sweep.sh").read_text()
    (tmp_path / "sweep.sh").write_text("my own")
    assert sweep("runs", *arguments) == 2
    assert "exists, and milkweed did not write it" in capsys.readouterr().err


def test_modules_of_the_user_are_imported_by_every_run(tmp_path, commands, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "swept_layers.py").write_text("import milkweed as mw\nmw.register('layer', 'swept', mw.nn.S4D)\n")
    assert main(["--import", "swept_layers", "sweep", "digits", *SMALL, "--grid", "model.layer.name=swept"]) == 0
    assert commands[0][1:5] == ["-m", "milkweed", "--import", "swept_layers"]
