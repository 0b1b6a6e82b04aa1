"""Trainings in processes of their own: killed, interrupted, and distributed."""

import csv
import signal
import subprocess
import sys
import time

import pytest
import torch

from milkweed.cli import main
from milkweed.convert import load_pretrained

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "256"),
]
STEPS_PER_EPOCH = 8


def command(out, *options):
    return [sys.executable, "-m", "milkweed", "train", "digits", "--out", str(out), *SMALL, *options]


def finish(out, *options):
    """A training of its own process, with all the processes that it starts."""
    done = subprocess.run(command(out, *options), capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return done


def train(out, *options):
    """The same training in this process, which has imported everything already."""
    return main(command(out, *options)[3:])


def start_and_wait(out, step, *options):
    """Start a training and return its process once a checkpoint of at least this step is written."""
    process = subprocess.Popen(command(out, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(path.stem[5:]) >= step for path in out.glob("*/checkpoints/step-*.ckpt")):
            return process
        time.sleep(0.002)
    process.kill()
    pytest.fail(f"no checkpoint of step {step}: {process.communicate()[0]}")


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def weights(folder):
    return load_pretrained(folder).state_dict()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [(), ("--trainer.checkpoint_every_n_steps", "3")], ids=["epochs", "steps"])
def test_killed_training_resumes_bit_for_bit(tmp_path, options, capsys):
    options = (*options, "--model.dropout", "0.2", "--trainer.max_epochs", "12")
    assert train(tmp_path / "whole", *options) == 0
    capsys.readouterr()
    process = start_and_wait(tmp_path / "killed", 2 * STEPS_PER_EPOCH + 1, *options)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    killed = tmp_path / "killed" / "digits"
    assert not (killed / "results.json").exists()
    assert train(tmp_path / "killed", "--resume", "auto", *options) == 0
    assert "Continuing" in capsys.readouterr().out
    whole = tmp_path / "whole" / "digits"
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) == 12
    expected, found = weights(whole), weights(killed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_interrupt_says_how_to_go_on(tmp_path, capsys):
    process = start_and_wait(tmp_path, STEPS_PER_EPOCH, "--trainer.max_epochs", "10000")
    assert train(tmp_path, "--resume", "auto") == 2
    assert f"in use by process {process.pid} " in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert "is saved; go on with" in shown
    assert f"milkweed train digits --name digits --out {tmp_path} --resume auto" in shown
    assert not (tmp_path / "digits" / ".lock").exists()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_train_the_same_as_one(tmp_path):
    # Few steps: each is several exchanges between processes, slow where cores are scarce.
    options = ("--model.dropout", "0", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3")
    assert train(tmp_path, *options, "--name", "one") == 0
    done = finish(tmp_path, *options, "--name", "two", "--trainer.strategy", "ddp", "--trainer.devices", "2")
    assert done.stdout.count("results in") == 1
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 2
    for expected, found in zip(one, two, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("then", [2, 1])
def test_two_processes_make_layers_dense_as_one_does(tmp_path, then):
    def options(name, processes, *more):
        return [
            *("train", "digits-monarch", "--trainer.devices", str(processes)),
            *("--trainer.strategy", "ddp" if processes > 1 else "auto"),
            *("--out", str(tmp_path), "--name", name, "--model.d_model", "16", "--model.depth", "1"),
            *("--data.rows", "false", "--model.channel_dim", "32", "--model.token_linear", "null"),
            *("--model.dropout", "0", "--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "2"),
            *("--trainer.densify.at", "4", "--trainer.densify.state", "carry", *more),
        ]

    def distributed(*options):
        done = subprocess.run(
            [sys.executable, "-m", "milkweed", *options], capture_output=True, text=True, timeout=170, check=False
        )
        assert done.returncode == 0, done.stderr

    assert main(options("one", 1)) == 0
    distributed(*options("two", 2))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 2
    for expected, found in zip(one, two, strict=True):
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert "blocks.0.tokens.up.weight" in expected
    for name in expected:
        # Sums in another order, which AdamW's first steps magnify, with or without the switch.
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    # A run of two processes may go on in one.
    resumed = options("two", then, "--resume", "auto", "--trainer.max_epochs", "3")
    if then == 1:
        assert main(resumed) == 0
    else:
        distributed(*resumed)
    assert len(rows(tmp_path / "two")) == 3
