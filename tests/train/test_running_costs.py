import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from milkweed.cli import main
from milkweed.models import SequenceModel
from milkweed.train.checkpoint_io import read_checkpoint
from milkweed.train.model_costs import forward_flops, on_meta
from milkweed.train.running_costs import RunningCosts, forget_peak, peak_memory

CPU = torch.device("cpu")
SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak begins anew on Linux only")
def test_peak_is_that_since_it_was_forgotten():
    forget_peak(CPU)
    before = peak_memory(CPU)
    large = torch.ones(50_000_000)
    del large
    assert peak_memory(CPU) > before + 150e6
    forget_peak(CPU)
    assert peak_memory(CPU) < before + 100e6


def test_results_say_what_the_training_cost(tmp_path):
    train = ["train", "digits", "--out", str(tmp_path), "--name", "a", *SMALL]
    assert main([*train, "--trainer.max_epochs", "1"]) == 0
    first = json.loads((tmp_path / "a" / "results.json").read_text())
    assert first["larger_is_better"] is True
    assert first["peak_memory_of"] == "process"
    assert first["peak_memory_bytes"] > 100e6
    # Three equal steps; an epoch also validates.
    assert 0 < first["seconds_per_step"] < first["seconds_per_epoch"]
    assert main([*train, "--resume", "auto", "--trainer.max_epochs", "2"]) == 0
    stored = read_checkpoint(tmp_path / "a" / "checkpoints" / "step-000000006.ckpt")["callbacks"]["RunningCosts"]
    assert len(stored["seconds"]) == 6
    again = json.loads((tmp_path / "a" / "results.json").read_text())
    assert again["peak_memory_bytes"] == stored["peak"] >= first["peak_memory_bytes"]
    assert again["flops"] == first["flops"]


def test_accumulated_batches_are_one_step(monkeypatch):
    ticks = iter([1.0, 2.0, 5.0, 8.0])
    monkeypatch.setattr("milkweed.train.running_costs.time.perf_counter", lambda: next(ticks))
    costs, trainer = RunningCosts(), SimpleNamespace(accumulate_grad_batches=4)
    for number in range(2):
        costs.on_train_batch_start(trainer, None, None, number)
        costs.on_train_batch_end(trainer, None, None, None, number)
    assert list(costs.seconds) == [4.0, 12.0]


def data(length=16, d_input=3, tokens=False):
    return SimpleNamespace(length=length, d_input=d_input, tokens=tokens)


def test_flops_are_those_of_one_sample():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 5)

        def forward(self, inputs, lengths):
            return self.linear(inputs)

    model = Linear()
    assert forward_flops(model, data()) == 2 * 16 * 3 * 5
    assert forward_flops(torch.compile(model), data()) == 2 * 16 * 3 * 5
    assert model.linear.weight.device == CPU


def test_tied_weights_stay_tied_without_values():
    model = SequenceModel(3, 4, d_model=8, depth=1)
    model.again = model.encoder
    copied = on_meta(model)
    assert copied.again.weight is copied.encoder.weight
    assert all(each.is_meta for each in copied.parameters())
    assert sum(p.numel() for p in copied.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_model_that_looks_at_values_has_no_count():
    class Looks(nn.Module):
        def forward(self, inputs, lengths):
            return inputs * inputs.sum().item()

    assert forward_flops(Looks(), data()) is None
