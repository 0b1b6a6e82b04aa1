"""One training at a time in the folder of a run."""

import os
import signal
import subprocess
import sys

import pytest

from milkweed.cli import main
from milkweed.train import run_lock
from milkweed.train.run_lock import LOCK, RunInUseError, locked

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "1"),
]
HOLD = """
import sys, time
from pathlib import Path
from milkweed.train.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    folder = tmp_path / "a"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_has_it(holder):
    folder, process = holder
    with pytest.raises(RunInUseError, match=f"run .* is in use by process {process.pid} on .*another name"):
        locked(folder).__enter__()
    assert (folder / LOCK).read_text().startswith(f"process {process.pid} ")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_of_a_dead_process_is_taken_over(holder, sent):
    folder, process = holder
    process.send_signal(sent)
    process.wait()
    assert (folder / LOCK).exists() == (sent != signal.SIGINT)  # an interruption runs to the end of the block
    with locked(folder):
        assert (folder / LOCK).read_text().startswith(f"process {os.getpid()} ")
    assert list(folder.iterdir()) == []


def test_a_lock_goes_with_its_block_and_touches_no_other(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        with locked(tmp_path):  # e.g. after the folder was removed and made anew
            pass
        (tmp_path / LOCK).write_text("of another")
    assert (tmp_path / LOCK).read_text() == "of another"


def test_a_file_removed_between_opening_and_locking_is_not_taken(tmp_path, monkeypatch):
    lock, calls = run_lock._lock, []

    def late(handle):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(handle)
        return lock(handle)

    monkeypatch.setattr(run_lock, "_lock", late)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
        assert len(calls) == 2


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe"])
def test_only_a_file_of_its_own_is_locked(tmp_path, kind):
    folder, victim = tmp_path / "run", tmp_path / "thesis.tex"
    folder.mkdir()
    victim.write_text("years of work")
    lock = folder / LOCK
    {
        "link": lambda: lock.symlink_to(victim),
        "dangling link": lambda: lock.symlink_to(tmp_path / "made"),
        "hard link": lambda: lock.hardlink_to(victim),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }[kind]()
    with pytest.raises(OSError, match=r"run .* cannot be locked: .*\.lock is a link or not a plain file.*delete it"):
        locked(folder).__enter__()
    assert victim.read_text() == "years of work"
    assert not (tmp_path / "made").exists()


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    with locked(tmp_path / "run"):
        assert (tmp_path / "scratch" / LOCK).is_file()


@pytest.mark.parametrize("how", ["auto", "path"])
def test_training_in_a_folder_in_use_is_refused_and_changes_nothing(tmp_path, how, capsys):
    start = ["train", "digits", "--out", str(tmp_path), "--name", "a", *SMALL]
    assert main(start) == 0
    folder = tmp_path / "a"
    (checkpoint,) = (folder / "checkpoints").glob("step-*.ckpt")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    more = [*start, "--resume", "auto" if how == "auto" else str(checkpoint), "--trainer.max_epochs", "2"]
    with locked(folder):
        assert main(more) == 2
        assert "is in use by process" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert main(more) == 0
    assert not (folder / LOCK).exists()


def test_a_folder_with_a_dead_lock_alone_is_started_anew(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / LOCK).write_text("process 1 on a machine\n")
    assert main(["train", "digits", "--out", str(tmp_path), "--name", "a", "--resume", "auto", *SMALL]) == 0
    assert (tmp_path / "a" / "results.json").is_file()
    assert not (tmp_path / "a" / LOCK).exists()
