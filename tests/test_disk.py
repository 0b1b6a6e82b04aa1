"""A full disk, whoever meets it first, is one sentence; what stood before still stands."""

import errno
import json
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from milkweed import save_pretrained
from milkweed._disk import DiskFullError, full_disk
from milkweed._files import atomic_write
from milkweed.cli.errors import caused_by_input
from milkweed.convert.files import writing
from milkweed.models import MlpMixer
from milkweed.plots import save_confusion_matrix
from milkweed.train.callbacks import write_rows
from milkweed.train.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from milkweed.train.run_folder import RunFolder, write_json


@pytest.fixture
def small_disk():
    """Lets files grow to 4 kB only, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


LONG = {"epoch": "x" * 9000, "seconds": 1}
WRITERS = {
    "a.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(100_000)}, path),
    "metrics.csv": lambda path: write_rows(path, [LONG]),
    "results.json": lambda path: write_json(path, LONG),
    "config.yaml": lambda path: RunFolder(path.parent).write_config(LONG),
    "environment.json": lambda path: RunFolder(path.parent).write_environment(LONG),
    "confusion.png": lambda path: save_confusion_matrix(np.eye(9, dtype=int), list("abcdefghi"), path, "x"),
    "model.safetensors": lambda path: save_pretrained(
        MlpMixer(d_input=1, d_output=2, length=64, d_model=64, depth=1), path.parent
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_that_the_disk_is_full(tmp_path, small_disk, name):
    path = tmp_path / name
    path.write_text("as before")
    with pytest.raises(DiskFullError) as caught:
        WRITERS[name](path)
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be written: the file would be larger than")
    assert f"free in {tmp_path}" in text
    assert "ulimit -f" in text
    assert "\n" not in text
    assert caused_by_input(caught.value)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "as before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_says_what_it_needs(tmp_path, small_disk):
    shared = torch.zeros(100_000)
    with pytest.raises(DiskFullError, match=r"\(File too large; 0\.4 MB needed, [\d,.]+ MB free in "):
        AtomicCheckpointIO().save_checkpoint({"a": shared, "b": [shared[:10]], "c": {"d": 1}}, tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk quota is used up"), (errno.EFBIG, "would be larger")],
)
def test_causes_and_fixes(tmp_path, number, cause):
    with pytest.raises(DiskFullError, match=cause) as caught, atomic_write(tmp_path / "a"):
        raise OSError(number, "x")
    assert caught.value.errno == number
    with pytest.raises(DiskFullError, match=cause), writing(tmp_path / "a"), atomic_write(tmp_path / "a"):
        raise OSError(number, "x")


def test_what_hides_the_cause_is_looked_through(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")

    def raised(error, cause):
        error.__cause__ = cause
        return error

    assert full_disk(raised(RuntimeError("unexpected pos"), full), tmp_path / "a", None).errno == errno.ENOSPC
    assert full_disk(RuntimeError("I/O error: No space left (os error 28)"), tmp_path / "a", None).errno == 28
    assert full_disk(raised(RuntimeError("x"), FileNotFoundError(2, "x")), tmp_path / "a", None) is None
    assert full_disk(PermissionError(13, "x"), tmp_path / "a", None) is None


def test_other_failures_stay_what_they_are(tmp_path):
    for error in (RuntimeError("x"), OSError("no number"), ValueError("x"), PermissionError(13, "x")):
        with pytest.raises(type(error), match=r"x|no number") as caught, atomic_write(tmp_path / "a"):
            raise error
        assert caught.value is error
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_name_of_a_file(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(DiskFullError, match="the disk is full"), atomic_write(tmp_path / "a"):
        pass


TRAIN = """
import resource, signal, sys
from milkweed.cli import main
from milkweed.train import checkpoint_io
saved = []
save = checkpoint_io.torch.save
def late(content, path):
    if len(saved) == 2:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    saved.append(path)
    save(content, path)
checkpoint_io.torch.save = late
sys.exit(main(sys.argv[1:]))
"""
SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "4"),
]


def test_a_training_keeps_its_last_good_checkpoint(tmp_path):
    train = ["train", "digits", "--out", str(tmp_path), "--name", "a", *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *train], capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "Traceback" not in text
    assert "step-000000009.ckpt cannot be written: the file would be larger" in text
    assert "step-000000006.ckpt is saved; then go on with milkweed train digits --name a" in text
    folder = tmp_path / "a"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "step-000000003.ckpt",
        "step-000000006.ckpt",
    ]
    assert read_checkpoint(folder / "checkpoints" / "step-000000006.ckpt")["epoch"] == 1
    again = [sys.executable, "-m", "milkweed", *train, "--resume", "auto"]
    subprocess.run(again, capture_output=True, check=True, timeout=170)
    assert json.loads((folder / "results.json").read_text())["epochs"] == 4
