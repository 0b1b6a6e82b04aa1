"""The processes of a sweep: so many at a time, apart from each other, and none left behind."""

import json
import signal
import subprocess
import sys
import time

import pytest

from milkweed.cli import main
from milkweed.cli.sweep import processes
from milkweed.cli.sweep.grid import Combination
from milkweed.cli.sweep.processes import run_all, shares, start_process
from milkweed.train.callbacks import read_rows

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "256"),
]


def combinations(count):
    return [Combination(f"run-{number}", (), number, {}) for number in range(count)]


def starter(folder, program):
    """Starts a Python program with the number of the run."""

    def start(run, slot):
        command = [sys.executable, "-S", "-c", program, str(run.seed)]
        return start_process(command, folder / f"{run.name}.log", {"SLOT": str(slot)}, run, slot)

    return start


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(processes, "PAUSE", 0.01)


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_run_at_a_time_and_failures_stay_alone(jobs, tmp_path):
    program = """if 1:
        import os, signal, sys, time
        print("epoch 1/2  val_loss 1.5"); print("epoch 2/2  val_loss 0.5", flush=True)
        time.sleep(0.1)
        if sys.argv[1] == "1": sys.exit("error: so it is\\n  and so on\\n--debug or X=1 shows")
        if sys.argv[1] == "2": os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[1] == "3": raise KeyError("a defect")
    """
    most, ended = [], {}

    def look(running, done):
        most.append(len(running) + len(done))
        assert len({child.slot for child in [*running, *done]}) == len(running) + len(done)
        ended.update({child.combination.name: child for child in done})

    run_all(combinations(5), jobs, starter(tmp_path, program), look)
    assert max(most) == jobs
    assert [ended[f"run-{number}"].process.returncode == 0 for number in range(5)] == [True, False, False, False, True]
    assert ended["run-0"].progress() == ("2/2", "val_loss 0.5")
    assert ended["run-1"].error() == "so it is and so on"
    assert ended["run-2"].error() == "ended by SIGKILL; the memory may have been too small"
    assert ended["run-3"].error() == "KeyError: 'a defect'"


def test_a_log_is_continued_and_only_its_new_part_counts(tmp_path):
    (tmp_path / "run-0.log").write_text("epoch 7/9  val_loss 1\nerror: old\n")
    ended = []
    run_all(combinations(1), 1, starter(tmp_path, "print('new')"), lambda running, done: ended.extend(done))
    assert ended[0].progress() == ("", "")
    assert (tmp_path / "run-0.log").read_text().endswith("error: old\nnew\n")


@pytest.mark.parametrize("deaf", [(), ("SIGINT",), ("SIGINT", "SIGTERM")], ids=["willing", "deaf", "stubborn"])
def test_whatever_ends_a_sweep_ends_its_processes(deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", (0.3, 0.3))
    ignored = "".join(f"signal.signal(signal.{name}, signal.SIG_IGN);" for name in deaf)
    program = f"import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); {ignored} print(1, flush=True)"
    program += "; time.sleep(60)"
    children = []

    def look(running, done):
        children[:] = running
        if all(child.log.read_text() for child in running):
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(combinations(3), 2, starter(tmp_path, program), look)
    assert time.monotonic() - started < 30
    last = {0: signal.SIGINT, 1: signal.SIGTERM, 2: signal.SIGKILL}[len(deaf)]
    assert [child.process.returncode for child in children] == [-last, -last]
    assert not (tmp_path / "run-2.log").exists()


def test_each_process_has_its_share(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert shares(3, 0, 0) == {"OMP_NUM_THREADS": "2"}
    assert shares(16, 0, 1) == {"OMP_NUM_THREADS": "1"}
    assert [shares(3, slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [shares(2, slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4", "6"]
    assert "CUDA_VISIBLE_DEVICES" not in shares(1, 0, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in shares(2, 0, 0)


def test_an_interrupted_sweep_loses_no_more_than_its_runs_do(tmp_path, capsys):
    arguments = ["sweep", "digits", "--out", str(tmp_path), "--seeds", "2", *SMALL]
    folder = tmp_path / "digits-sweep"
    command = [sys.executable, "-m", "milkweed", *arguments, "--trainer.max_epochs", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("seed=0/checkpoints/step-*.ckpt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert f"Stopped. The same command goes on; what is done is in {folder}." in out
    states = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [state["state"] for state in states.values()] == ["interrupted", "waiting"]
    assert "is saved; go on with" in (folder / "seed=0.log").read_text()
    assert not (folder / "seed=0" / ".lock").exists()
    trained = len(read_rows(folder / "seed=0" / "metrics.csv"))
    assert 1 <= trained < 300
    assert main([*arguments, "--trainer.max_epochs", str(trained + 1)]) == 2
    assert "trainer.max_epochs was 300 and is" in capsys.readouterr().err
